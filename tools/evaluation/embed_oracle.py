"""What sentence-transformers computes, for embeddings.py: run by its interpreter, reads and writes JSON.

Input: {"embed": FOLDER, "texts": [...], "cross": FOLDER, "pairs": [[first, second], ...]}; output: vectors and scores.
"""

from __future__ import annotations

import json
import sys

import sentence_transformers
from sentence_transformers import CrossEncoder, SentenceTransformer

asked = json.load(sys.stdin)
vectors = SentenceTransformer(asked["embed"], device="cpu").encode(asked["texts"], batch_size=16)
scores = CrossEncoder(asked["cross"], device="cpu").predict([tuple(pair) for pair in asked["pairs"]], batch_size=16)
answer = {"version": sentence_transformers.__version__, "vectors": vectors.tolist(), "scores": scores.tolist()}
json.dump(answer, sys.stdout)
