"""What a caller asks for, after validation: frozen, valid by construction, and what it ends with."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec


class FinishReason(enum.IntEnum):
    """Why a choice ended; the numbers are those of inferd.v1.FinishReason."""

    EOS = 1
    STOP_TOKEN = 2
    STOP_STRING = 3
    MAX_TOKENS = 4
    CONTEXT_FULL = 5
    TIME_LIMIT = 6
    ABORTED = 7


class ConstraintKind(enum.IntEnum):
    """What an output is constrained by; the numbers are those of inferd.v1.ConstraintKind."""

    JSON_SCHEMA = 1
    JSON_OBJECT = 2
    REGEX = 3
    EBNF = 4
    CHOICES = 5
    STRUCTURAL_TAG = 6


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. temperature 0: greedy; top_k 0, top_p 1, min_p 0, repetition_penalty 1: off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # unsigned 64 bits; drawn at random in the front when the caller gave none
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed

    @property
    def needs_history(self) -> bool:
        """Whether the sampler must know the tokens of the sequence so far."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0 or self.bad_words)


class StopParams(msgspec.Struct, frozen=True, kw_only=True):
    """When a choice ends. Token conditions are the scheduler's, strings and text the front's."""

    max_tokens: int  # resolved: never more than the context leaves; 0 computes the prompt only
    min_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()  # empty under ignore_eos
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    include_stop: bool = False
    time_limit_s: float | None = None  # from admission; the partial answer is an answer


class LogprobParams(msgspec.Struct, frozen=True, kw_only=True):
    """Which log probabilities come back: the chosen token's always, the top_n largest, and those of token_ids."""

    top_n: int = 0
    token_ids: tuple[int, ...] = ()


# How the hidden states of an input become one vector; classify: the checkpoint's classification head.
PoolingKind = Literal["mean", "cls", "last", "classify"]


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True):
    """A vector of the prompt is wanted instead of tokens; stop.max_tokens is 0 then."""

    kind: PoolingKind
    num_tokens: int  # of the prompt
    second_start: int | None = None  # where the second text of a pair begins


class CacheParams(msgspec.Struct, frozen=True, kw_only=True):
    """Prefix cache use. Different salts never share blocks."""

    salt: str = ""
    read: bool = True
    write: bool = True


class Tenant(msgspec.Struct, frozen=True):
    """Who asks: tenants share the engine fairly within a priority, first keys, then the callers of one key."""

    key: str = ""  # a digest of the API key; empty: anonymous
    caller: str = ""  # whom the key's holder names, a gateway for instance; empty: itself


class ConstraintSpec(msgspec.Struct, frozen=True):
    """A constraint as the caller wrote it. source: the schema, regex or grammar; a JSON list for choices.

    lenient: schema keywords that cannot be enforced are left out rather than refused.
    """

    kind: ConstraintKind
    source: str
    lenient: bool = False


class Constraint(msgspec.Struct, frozen=True):
    """A checked constraint: a grammar in the form of the matching library, and the text after which it starts."""

    grammar: str
    starts_after: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One admitted generation: n choices that share a prompt. Times: CLOCK_MONOTONIC seconds, one clock per host."""

    key: int  # ours, unique in this daemon's life; client-chosen ids are never used as keys
    request_id: str  # the caller's, for logs and for AbortRequests
    prompt_token_ids: list[int]
    sampling: SamplingParams
    stop: StopParams
    num_choices: int = 1
    tenant: Tenant = Tenant()
    priority: int = 0  # higher runs first
    logprobs: LogprobParams | None = None
    prompt_logprobs: LogprobParams | None = None
    pooling: PoolingParams | None = None
    cache: CacheParams = CacheParams()
    arrival: float = 0.0
    deadline: float | None = None
    queue_deadline: float | None = None
    constraint: Constraint | None = None
    prefill_progress: bool = False  # report each chunk of the prompt
    resumed_tokens: int = 0  # the last N prompt tokens were generated before: they count as output
