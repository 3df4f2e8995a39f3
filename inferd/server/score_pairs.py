"""Score by vectors and heads: pairs and rerank by a cross-encoder or by the similarity of embeddings, and classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import chain

from inferd.front.output import OutputDelta
from inferd.request import PoolingParams
from inferd.server.convert_prompt import check_prompt, encode_arguments, prompt_bytes
from inferd.server.embed import encode_inputs, input_limit
from inferd.server.inputs import Caller, Serving, check_batch, cut_pair, pooled_requests, room_of, vector_of
from inferd.server.tasks import classifier_of, embedding_of, require
from inferd.server.totals import timing_of, usage_of
from inferd.server.vectors import activated, cosine, matrix_of
from inferd.server.window import Window
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import common_pb2, inference_pb2, model_pb2

Pair = tuple[common_pb2.Prompt, common_pb2.Prompt]


async def score_pairs(
    pb: inference_pb2.ScoreRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.ScoreResponse:
    """PairTask and RerankTask: one score per pair or document."""
    started = time.monotonic()
    require(serving.model, model_pb2.TASK_SCORE_PAIRS)
    pairs = checked_pairs(pb, serving)
    if serving.model.capabilities.classifier is not None:
        deltas, scores = await cross_encode(pb, pairs, serving, caller, window)
    else:
        deltas, scores = await compare(pb, pairs, serving, caller, window)
    return inference_pb2.ScoreResponse(
        scores=scores, columns=1, usage=usage_of(deltas), timing=timing_of(deltas, started)
    )


async def classify(
    pb: inference_pb2.ScoreRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.ScoreResponse:
    """ClassTask: the score of every class for each input."""
    started = time.monotonic()
    require(serving.model, model_pb2.TASK_CLASSIFY)
    prompts = list(pb.classes.inputs)
    check_batch("classes.inputs", len(prompts), serving)
    for index, prompt in enumerate(prompts):
        check_prompt(f"classes.inputs[{index}]", prompt, serving.vocab_size)
    room = room_of(pb, serving.max_context_tokens, "classes.inputs")
    work = partial(encode_inputs, prompts, serving.model.tokenizer, room)
    inputs = await serving.pool.run(sum(map(prompt_bytes, prompts)), work)
    params = [PoolingParams(kind="classify", num_tokens=len(ids)) for ids in inputs]
    deltas = await window.run_all(pooled_requests(serving, caller, inputs, params))
    labels = classifier_of(serving.model).labels
    return inference_pb2.ScoreResponse(
        scores=head_scores(pb, deltas, serving),
        columns=len(labels),
        class_names=labels,
        usage=usage_of(deltas),
        timing=timing_of(deltas, started),
    )


def checked_pairs(pb: inference_pb2.ScoreRequest, serving: Serving) -> list[Pair]:
    """The pairs that are asked about, none of them empty; a rerank's query is the first text of each."""
    if pb.WhichOneof("task") == "rerank":
        check_batch("rerank.documents", len(pb.rerank.documents), serving)
        check_prompt("rerank.query", pb.rerank.query, serving.vocab_size)
        for index, document in enumerate(pb.rerank.documents):
            check_prompt(f"rerank.documents[{index}]", document, serving.vocab_size)
        return [(pb.rerank.query, document) for document in pb.rerank.documents]
    check_batch("pairs.pairs", len(pb.pairs.pairs), serving)
    for index, pair in enumerate(pb.pairs.pairs):
        check_prompt(f"pairs.pairs[{index}].first", pair.first, serving.vocab_size)
        check_prompt(f"pairs.pairs[{index}].second", pair.second, serving.vocab_size)
    return [(pair.first, pair.second) for pair in pb.pairs.pairs]


async def cross_encode(
    pb: inference_pb2.ScoreRequest, pairs: list[Pair], serving: Serving, caller: Caller, window: Window
) -> tuple[list[OutputDelta], list[float]]:
    """Both texts of a pair in one input."""
    tokenizer, room = serving.model.tokenizer, room_of(pb, serving.max_context_tokens, "pairs")

    def encode() -> list[tuple[list[int], int]]:
        return [cut_pair(bare(first, tokenizer), bare(second, tokenizer), room, tokenizer) for first, second in pairs]

    encoded = await serving.pool.run(sum(map(prompt_bytes, chain(*pairs))), encode)
    params = [PoolingParams(kind="classify", num_tokens=len(ids), second_start=start) for ids, start in encoded]
    deltas = await window.run_all(pooled_requests(serving, caller, [ids for ids, _ in encoded], params))
    return deltas, head_scores(pb, deltas, serving)


async def compare(
    pb: inference_pb2.ScoreRequest, pairs: list[Pair], serving: Serving, caller: Caller, window: Window
) -> tuple[list[OutputDelta], list[float]]:
    """Cosine of the vectors of both texts. A rerank's query is embedded once."""
    embedding, tokenizer = embedding_of(serving.model), serving.model.tokenizer
    firsts = [pairs[0][0]] if pb.WhichOneof("task") == "rerank" else [first for first, _ in pairs]
    prompts = firsts + [second for _, second in pairs]
    room = room_of(pb, input_limit(embedding, serving), "pairs")
    inputs = await serving.pool.run(sum(map(prompt_bytes, prompts)), partial(encode_inputs, prompts, tokenizer, room))
    params = [PoolingParams(kind=embedding.pooling, num_tokens=len(ids)) for ids in inputs]
    deltas = await window.run_all(pooled_requests(serving, caller, inputs, params))
    matrix = matrix_of([vector_of(delta) for delta in deltas])
    return deltas, cosine(matrix[: len(firsts)], matrix[len(firsts) :])


def bare(prompt: common_pb2.Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids of one text of a pair; the special tokens are the pair's."""
    if prompt.WhichOneof("kind") == "token_ids":
        return list(prompt.token_ids.ids)
    return tokenizer.encode(encode_arguments(prompt)[0], False)


def head_scores(pb: inference_pb2.ScoreRequest, deltas: Sequence[OutputDelta], serving: Serving) -> list[float]:
    """Outputs of the classification head, row-major, with its activation unless the caller wants logits."""
    wants_logits = pb.HasField("activation") and not pb.activation
    activation = "identity" if wants_logits else classifier_of(serving.model).activation
    matrix = activated(matrix_of([vector_of(delta) for delta in deltas]), activation)
    scores: list[float] = matrix.flatten().tolist()
    return scores
