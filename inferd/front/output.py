"""What a generation gives its consumer: frozen deltas."""

from __future__ import annotations

from dataclasses import dataclass

from inferd.request import FinishReason
from inferd.step import TokenLogprobs


@dataclass(frozen=True, slots=True)
class OutputParams:
    """What a consumer wants to see, and how it is cut into messages."""

    text: bool = True
    token_ids: bool = True
    skip_special_tokens: bool = True
    final: bool = False  # one delta with everything
    max_delay_s: float = 0.0  # the longest a token may wait to share a delta
    usage_in_every_delta: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one choice. completion_tokens counts up to the stop match, a final end-of-text token included."""

    reason: FinishReason
    completion_tokens: int
    stop_token_id: int | None = None
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What is new of one choice. logprobs is empty or as long as token_ids; token_ids may run ahead of the text."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """About the prompt. logprobs[i] is of the prompt's token i + 1."""

    tokens: int
    cached_tokens: int
    logprobs: list[TokenLogprobs]
    vector: bytes = b""  # of a pooled prompt, as in SequenceResult


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    draft_tokens: int = 0  # guessed, over all choices
    accepted_draft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: admission to first scheduled, to first token, first token to last, admission to the end."""

    queue_s: float
    prefill_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """One message: prompt in the first, usage and timing in the last."""

    choices: list[ChoiceDelta]
    prompt: PromptInfo | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    prefilled_tokens: int = 0  # a message of its own, without choices
