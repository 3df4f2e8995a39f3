"""Which of several daemons with the same model gets a request: the one that has its prefix, within bounds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from inferd_gateway.directory import ServedModel

# A prefix that fills a few KV blocks; shorter ones are recomputed sooner than they are looked for. The key must not
# change while a text grows, so it takes no more of it than that; of a chat it takes what precedes the first answer.
PREFIX_CHARS = 256
CHAT_CHARS = 1024
IMBALANCE = 1.25  # Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads (2016)
SLACK = 4  # requests; keeps a prefix at its home while there is little load
SESSION_FIELDS = ("prompt_cache_key", "session_id")
SESSION_HEADER = "x-session-id"


def affinity_key(headers: Mapping[str, str], fields: Mapping[str, Any], prompt: Any) -> bytes | None:
    """What requests have in common that should meet one daemon: the session they name, else how their prompt begins.

    None for a prompt that is too short to matter. `prompt` is text, token ids or messages.
    """
    session = headers.get(SESSION_HEADER) or next((fields[name] for name in SESSION_FIELDS if fields.get(name)), None)
    if session is not None:
        return digest("session", str(session))
    text = opening(prompt)
    return digest("prefix", text) if len(text) >= PREFIX_CHARS else None


def opening(prompt: Any) -> str:
    """How a prompt begins: the first characters of a text, ids, or the messages up to the first of the user."""
    if isinstance(prompt, str):
        return prompt[:PREFIX_CHARS]
    parts: list[str] = []
    for part in prompt if isinstance(prompt, list) else [prompt]:
        if isinstance(part, BaseModel):
            parts.append(part.model_dump_json(exclude_none=True)[:CHAT_CHARS])
            if getattr(part, "role", "") == "user":
                break
        else:
            parts.append(str(part))
            if len(parts) >= PREFIX_CHARS:
                break
    return " ".join(parts)[:CHAT_CHARS]


def choose(candidates: Sequence[ServedModel], affinity: bytes | None) -> ServedModel:
    """Without affinity the least loaded. With it the daemon that the key hashes to (rendezvous hashing: a daemon that
    comes or goes moves only its own keys), or the next one in the key's order while that one has too much to do."""
    serving = [model for model in candidates if model.backend.serving is not False] or list(candidates)
    load = loads(serving)
    places = range(len(serving))
    if affinity is None or len(serving) == 1:
        return serving[min(places, key=lambda place: (load[place], serving[place].backend.times_chosen))]
    bound = math.ceil(IMBALANCE * (sum(load) + 1) / len(serving)) + SLACK
    ranked = sorted(places, key=lambda place: digest(affinity.hex(), serving[place].backend.target), reverse=True)
    return serving[next(place for place in ranked if load[place] < bound)]


def loads(models: Sequence[ServedModel]) -> list[int]:
    """Of each model's daemon, as all of them report it; where one does not, the streams open from here at each: the two
    are not to be compared."""
    reported = [model.backend.reported_load for model in models]
    known = [load for load in reported if load is not None]
    return known if len(known) == len(models) else [model.backend.open_streams for model in models]


def digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
