"""inferd.v1.GenerateRequest -> Request. All semantic validation lives here: a Request is valid by construction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from inferd.config import Limits
from inferd.errors import InvalidParameter
from inferd.front.output import OutputParams
from inferd.request import CacheParams, ConstraintSpec, LogprobParams, Request, SamplingParams, StopParams, Tenant
from inferd.server.convert_constraint import constraint_from_pb
from inferd.server.convert_prompt import check_fits, check_prompt, truncate
from inferd.server.fields import (
    check_at_most,
    check_count,
    check_duration,
    check_enum,
    check_number,
    check_token_ids,
)
from inferd.server.served_model import ServedModel
from inferd.v1 import common_pb2, inference_pb2

STREAM_MODES = inference_pb2.StreamMode.keys()
TRUNCATIONS = common_pb2.Truncation.keys()
MAX_MAX_DELAY_S = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What requests are checked against; the numbers are the running engine's."""

    model: ServedModel
    limits: Limits
    vocab_size: int
    max_context_tokens: int
    max_num_seqs: int
    draw_seed: Callable[[], int]  # unsigned 64 bits, for a request that brings none


@dataclass(frozen=True, slots=True)
class CallParams:
    """What a call adds to its message."""

    key: int
    request_id: str
    deadline: float
    default_queue_timeout_s: float | None
    tenant: Tenant


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A GenerateRequest whose every field but the prompt's length has been checked; nothing was tokenized yet."""

    constraint: ConstraintSpec | None
    sampling: SamplingParams
    logprobs: LogprobParams | None
    prompt_logprobs: LogprobParams | None
    cache: CacheParams
    output: OutputParams
    num_choices: int
    queue_timeout_s: float | None
    time_limit_s: float | None


def check_request(pb: inference_pb2.GenerateRequest, bounds: Bounds) -> CheckedRequest:
    """Check what can be checked before the prompt is tokenized. Raises InferdError."""
    limits = bounds.limits
    bounds.model.check_name(pb.model)
    check_prompt("prompt", pb.prompt, bounds.vocab_size, adds_bos=bounds.model.tokenizer.adds_bos)
    if pb.stream.prefill_progress and pb.stream.mode == inference_pb2.STREAM_MODE_FINAL:
        raise InvalidParameter(
            "stream.prefill_progress has no meaning when everything comes as one message",
            field="stream.prefill_progress",
        )
    check_enum("truncation", pb.truncation, TRUNCATIONS)
    check_stop(pb.stop, bounds)
    num_choices = pb.num_choices if pb.HasField("num_choices") else 1
    check_at_most("num_choices", num_choices, min(limits.max_choices, bounds.max_num_seqs), low=1)
    check_resumed(pb, num_choices)
    check_at_most("priority", pb.priority, 2**31 - 1, low=-(2**31))
    if len(pb.cache.salt) > limits.max_salt_chars:
        raise InvalidParameter(
            f"cache.salt has {len(pb.cache.salt)} characters, at most {limits.max_salt_chars} are allowed",
            field="cache.salt",
        )
    prompt_logprobs = logprobs_from_pb(pb.output, "prompt_logprobs", bounds)
    return CheckedRequest(
        constraint=constraint_from_pb(pb.constraint, limits) if pb.HasField("constraint") else None,
        sampling=sampling_from_pb(pb.sampling, bounds),
        logprobs=logprobs_from_pb(pb.output, "logprobs", bounds),
        prompt_logprobs=prompt_logprobs,
        cache=CacheParams(
            salt=pb.cache.salt,
            read=not (pb.cache.no_read or prompt_logprobs is not None),
            write=not pb.cache.no_write,
        ),
        output=output_from_pb(pb),
        num_choices=num_choices,
        queue_timeout_s=(check_duration("queue_timeout", pb.queue_timeout) if pb.HasField("queue_timeout") else None),
        time_limit_s=(
            check_duration("stop.time_limit", pb.stop.time_limit) if pb.stop.HasField("time_limit") else None
        ),
    )


def build_request(
    pb: inference_pb2.GenerateRequest,
    checked: CheckedRequest,
    prompt_ids: list[int],
    bad_words: tuple[tuple[int, ...], ...],
    bounds: Bounds,
    call: CallParams,
) -> tuple[Request, bool]:
    """The Request, and whether its prompt was truncated. Raises InferdError."""
    context = bounds.max_context_tokens
    if not prompt_ids:
        raise InvalidParameter("prompt has no tokens", field="prompt")
    kept, max_tokens = fit(pb, prompt_ids, context)
    if pb.stop.min_tokens > max_tokens:
        raise InvalidParameter(
            f"stop.min_tokens must be at most the {max_tokens} tokens that may be generated, got {pb.stop.min_tokens}",
            field="stop.min_tokens",
        )
    if pb.resumed_tokens and pb.resumed_tokens >= max_tokens:
        raise InvalidParameter(
            f"resumed_tokens must be less than the {max_tokens} tokens that may be generated, got {pb.resumed_tokens}",
            field="resumed_tokens",
        )
    now = time.monotonic()
    queue_timeout = checked.queue_timeout_s or call.default_queue_timeout_s
    request = Request(
        key=call.key,
        request_id=call.request_id,
        prompt_token_ids=kept,
        sampling=msgspec.structs.replace(checked.sampling, bad_words=bad_words),
        stop=StopParams(
            max_tokens=max_tokens,
            min_tokens=pb.stop.min_tokens,
            eos_token_ids=() if pb.stop.ignore_eos else tuple(bounds.model.tokenizer.eos_token_ids),
            stop_token_ids=tuple(dict.fromkeys(pb.stop.stop_token_ids)),
            stop_strings=tuple(dict.fromkeys(pb.stop.stop_strings)),
            include_stop=pb.stop.include_stop,
            time_limit_s=checked.time_limit_s,
        ),
        num_choices=checked.num_choices,
        tenant=call.tenant,
        priority=pb.priority,
        logprobs=checked.logprobs,
        prompt_logprobs=checked.prompt_logprobs,
        cache=checked.cache,
        arrival=now,
        deadline=call.deadline,
        queue_deadline=now + queue_timeout if queue_timeout is not None else None,
        prefill_progress=pb.stream.prefill_progress,
        resumed_tokens=pb.resumed_tokens,
    )
    return request, len(kept) < len(prompt_ids)


def fit(pb: inference_pb2.GenerateRequest, prompt_ids: list[int], context: int) -> tuple[list[int], int]:
    """(the tokens of the prompt that are read, the most tokens that may be generated). Raises ContextLengthExceeded."""
    asked = pb.stop.max_tokens if pb.stop.HasField("max_tokens") else None
    is_wish = asked is None or (pb.stop.clamp and asked > 0)
    # Resumed tokens are of the prompt here, and count as generated there: they take their room once.
    least = pb.resumed_tokens + 1 if is_wish else asked or 0
    wanted = least if asked is None else min(asked, max(least, context // 2))
    kept = truncate(prompt_ids, pb.truncation, max(1, context + pb.resumed_tokens - wanted))
    prompt_tokens = len(kept) - pb.resumed_tokens
    check_fits(prompt_tokens, least, context)
    room = context - prompt_tokens
    return kept, room if asked is None else min(asked, room)


def sampling_from_pb(pb: inference_pb2.SamplingParams, bounds: Bounds) -> SamplingParams:
    """Given values over the model's defaults over the engine's; bad_words are added once tokenized."""
    limits, base = bounds.limits, bounds.model.sampling_defaults()

    def number(name: str, low: float, high: float, *, open_low: bool = False) -> float:
        if not pb.HasField(name):
            default: float = getattr(base, name)
            return default
        return check_number(f"sampling.{name}", getattr(pb, name), low, high, open_low=open_low)

    check_count("sampling.logit_bias", pb.logit_bias, limits.max_logit_bias)
    check_token_ids("sampling.logit_bias", list(pb.logit_bias), bounds.vocab_size)
    for token_id, bias in pb.logit_bias.items():
        check_number(f"sampling.logit_bias[{token_id}]", bias, -100, 100)
    check_count("sampling.allowed_token_ids", pb.allowed_token_ids, limits.max_allowed_token_ids)
    check_token_ids("sampling.allowed_token_ids", pb.allowed_token_ids, bounds.vocab_size)
    check_count("sampling.bad_words", pb.bad_words, limits.max_bad_words)
    if any(not word.strip() for word in pb.bad_words):
        raise InvalidParameter("sampling.bad_words has an empty text", field="sampling.bad_words")
    check_bytes("sampling.bad_words", pb.bad_words, limits.max_bad_word_tokens * 8)
    return SamplingParams(
        temperature=number("temperature", 0, 2),
        top_k=min(pb.top_k, bounds.vocab_size) if pb.HasField("top_k") else base.top_k,
        top_p=number("top_p", 0, 1, open_low=True),
        min_p=number("min_p", 0, 1),
        presence_penalty=number("presence_penalty", -2, 2),
        frequency_penalty=number("frequency_penalty", -2, 2),
        repetition_penalty=number("repetition_penalty", 0, 10, open_low=True),
        seed=pb.seed if pb.HasField("seed") else bounds.draw_seed(),
        logit_bias=tuple(sorted(pb.logit_bias.items())),
        allowed_token_ids=tuple(sorted(set(pb.allowed_token_ids))),
    )


def check_stop(pb: inference_pb2.StopConditions, bounds: Bounds) -> None:
    limits = bounds.limits
    check_count("stop.stop_strings", pb.stop_strings, limits.max_stop_strings)
    if "" in pb.stop_strings:
        raise InvalidParameter("stop.stop_strings has an empty text", field="stop.stop_strings")
    check_bytes("stop.stop_strings", pb.stop_strings, limits.max_stop_bytes)
    check_count("stop.stop_token_ids", pb.stop_token_ids, limits.max_stop_token_ids)
    check_token_ids("stop.stop_token_ids", pb.stop_token_ids, bounds.vocab_size)
    if pb.HasField("max_tokens") and pb.min_tokens > pb.max_tokens:
        raise InvalidParameter(
            f"stop.min_tokens must be at most stop.max_tokens ({pb.max_tokens}), got {pb.min_tokens}",
            field="stop.min_tokens",
        )


def check_bytes(field: str, texts: Sequence[str], limit: int) -> None:
    total = sum(len(text.encode()) for text in texts)
    if total > limit:
        raise InvalidParameter(f"{field} has {total} bytes, at most {limit} are allowed", field=field)


def check_resumed(pb: inference_pb2.GenerateRequest, num_choices: int) -> None:
    """Resuming needs the exact tokens of one choice."""
    if not pb.resumed_tokens:
        return
    if pb.prompt.WhichOneof("kind") != "token_ids" or num_choices != 1:
        raise InvalidParameter("resumed_tokens needs prompt.token_ids and one choice", field="resumed_tokens")
    if pb.truncation not in (common_pb2.TRUNCATION_UNSPECIFIED, common_pb2.TRUNCATION_ERROR):
        raise InvalidParameter("resumed_tokens allows no truncation", field="resumed_tokens")
    check_at_most("resumed_tokens", pb.resumed_tokens, len(pb.prompt.token_ids.ids) - 1)


def logprobs_from_pb(pb: inference_pb2.OutputOptions, name: str, bounds: Bounds) -> LogprobParams | None:
    if not pb.HasField(name):
        return None
    options: inference_pb2.LogprobOptions = getattr(pb, name)
    field = f"output.{name}"
    check_at_most(f"{field}.top_n", options.top_n, bounds.limits.max_top_logprobs)
    check_count(f"{field}.token_ids", options.token_ids, bounds.limits.max_logprob_token_ids)
    check_token_ids(f"{field}.token_ids", options.token_ids, bounds.vocab_size)
    return LogprobParams(top_n=options.top_n, token_ids=tuple(dict.fromkeys(options.token_ids)))


def output_from_pb(pb: inference_pb2.GenerateRequest) -> OutputParams:
    stream, output = pb.stream, pb.output
    check_enum("stream.mode", stream.mode, STREAM_MODES)
    max_delay = check_duration("stream.max_delay", stream.max_delay, allow_zero=True)
    check_number("stream.max_delay", max_delay, 0, MAX_MAX_DELAY_S)
    return OutputParams(
        text=output.text if output.HasField("text") else True,
        token_ids=output.token_ids if output.HasField("token_ids") else True,
        skip_special_tokens=output.skip_special_tokens if output.HasField("skip_special_tokens") else True,
        final=stream.mode == inference_pb2.STREAM_MODE_FINAL,
        max_delay_s=max_delay,
        usage_in_every_delta=stream.usage_in_every_message,
    )
