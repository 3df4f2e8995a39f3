"""HTTP bodies to inferd.v1 requests. Pure functions; values are judged by the daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.errors import invalid
from inferd_gateway.schemas.chat import ChatRequest
from inferd_gateway.schemas.common import GenerationBody, ResponseFormat, StructuredOutputs
from inferd_gateway.schemas.completions import CompletionRequest
from inferd_gateway.tools import SCHEMA_FIELD

# Proto field paths and the names that HTTP callers know them by.
FIELDS: dict[str, str] = {
    **{f"sampling.{name}": name for name in pb.SamplingParams.DESCRIPTOR.fields_by_name},
    "stop": "stop",
    "stop.max_tokens": "max_tokens",
    "stop.min_tokens": "min_tokens",
    "stop.stop_token_ids": "stop_token_ids",
    "stop.ignore_eos": "ignore_eos",
    "stop.include_stop": "include_stop_str_in_output",
    "output.logprobs": "logprobs",
    "output.logprobs.token_ids": "logprob_token_ids",
    "output.prompt_logprobs": "prompt_logprobs",
    "output.skip_special_tokens": "skip_special_tokens",
    "num_choices": "n",
    "cache.salt": "cache_salt",
    "cache.session_id": "session_id",
    "constraint": "response_format",
    "truncation": "truncate_prompt_tokens",
    "prompt": "prompt",
    "prompt.add_special_tokens": "add_special_tokens",
    "inputs": "prompt",
}
CHAT_FIELDS: dict[str, str] = FIELDS | {
    "prompt": "messages",
    "inputs": "messages",
    "output.logprobs.top_n": "top_logprobs",
    SCHEMA_FIELD: "function.parameters",
}
MAX_NAMED = 16  # bad keys that an error tells
SAME_NAMES = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "allowed_token_ids",
    "bad_words",
)


def fields_of(body: GenerationBody) -> Mapping[str, str]:
    """The field names for errors about this body."""
    fields = dict(CHAT_FIELDS if isinstance(body, ChatRequest) else FIELDS)
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        fields["stop.max_tokens"] = "max_completion_tokens"
    if body.structured_outputs is not None:
        fields["constraint"] = "structured_outputs"
    return fields


def generate_request(
    body: GenerationBody, model: str, prompt: common_pb2.Prompt, request_id: str
) -> pb.GenerateRequest:
    """Everything but the log probabilities and the constraint, which the two routes set differently."""
    request = pb.GenerateRequest(
        model=model,
        prompt=prompt,
        sampling=sampling_params(body),
        stop=stop_conditions(body),
        output=pb.OutputOptions(text=True, token_ids=bool(body.return_token_ids)),
        stream=stream_options(body),
        # vLLM's priorities run the other way: there, lower goes first.
        priority=-(body.priority or 0),
        request_id=request_id,
    )
    if body.n is not None:
        request.num_choices = body.n
    if body.skip_special_tokens is not None:
        request.output.skip_special_tokens = body.skip_special_tokens
    if body.return_token_ids:
        request.output.prompt_token_ids = True
    if body.prompt_logprobs is not None:
        request.output.prompt_logprobs.CopyFrom(pb.LogprobOptions(top_n=body.prompt_logprobs, token_bytes=True))
    if body.cache_salt is not None or body.session_id is not None:
        request.cache.CopyFrom(pb.CacheOptions(salt=body.cache_salt or "", session_id=body.session_id or ""))
    if body.truncate_prompt_tokens == -1:
        request.truncation = keep_side(body)
    return request


def check_chat(body: ChatRequest) -> None:
    """Rules between fields that only HTTP has."""
    check_common(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    if body.logprob_token_ids and not body.logprobs:
        raise invalid("logprob_token_ids", "logprob_token_ids needs logprobs to be true.")
    if body.max_completion_tokens == 0 or (body.max_completion_tokens is None and body.max_tokens == 0):
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise invalid(name, f"{name} must be at least 1, got 0.")
    if body.echo:
        raise invalid("echo", "echo is not supported for chat completions.")


def check_completion(body: CompletionRequest, max_prompts: int) -> None:
    check_common(body)
    prompts = len(prompt_list(body.prompt))
    if not prompts:
        raise invalid("prompt", "prompt must not be an empty list.")
    if prompts > max_prompts:
        raise invalid("prompt", f"prompt must be a list of at most {max_prompts}, got {prompts}.")
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise invalid("best_of", f"best_of must be at least n ({body.n or 1}), got {body.best_of}.")
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise invalid("best_of", "best_of greater than n is not supported.")
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise invalid("max_tokens", "max_tokens must be at least 1 without echo or prompt_logprobs, got 0.")
    if body.logprob_token_ids and body.logprobs is None:
        raise invalid("logprob_token_ids", "logprob_token_ids needs logprobs.")


def check_common(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is only allowed when stream is true.")
    if body.prompt_logprobs is not None and body.stream:
        raise invalid("prompt_logprobs", "prompt_logprobs is not supported when stream is true.")


def prompt_list(prompt: str | list[Any]) -> list[str | list[int]]:
    """The prompts of a completion: one text, one list of ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    return [prompt] if prompt and isinstance(prompt[0], int) else prompt


def plain_prompt(prompt: str | list[int], add_special_tokens: bool | None) -> common_pb2.Prompt:
    if isinstance(prompt, list):
        return common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=prompt))
    return common_pb2.Prompt(text=prompt, add_special_tokens=add_special_tokens)


def segments_prompt(runs: list[tuple[str, bool]], add_special_tokens: bool | None) -> common_pb2.Prompt:
    segments = [common_pb2.Segment(text=text, parse_special=trusted) for text, trusted in runs]
    return common_pb2.Prompt(
        segments=common_pb2.Segments(segments=segments), add_special_tokens=bool(add_special_tokens)
    )


def sampling_params(body: GenerationBody) -> pb.SamplingParams:
    values = {name: value for name in SAME_NAMES if (value := getattr(body, name)) is not None}
    params = pb.SamplingParams(**values)
    if body.top_k is not None:
        params.top_k = max(0, body.top_k)
    if body.seed is not None:
        params.seed = body.seed & (2**64 - 1)
    bad = [key for key in body.logit_bias or {} if not is_token_id(key)]
    if bad:
        named = ", ".join(repr(key[:64]) for key in bad[:MAX_NAMED])
        more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        raise invalid("logit_bias", f"logit_bias: keys must be token ids, got {named}{more}.")
    for key, bias in (body.logit_bias or {}).items():
        params.logit_bias[int(key)] = bias
    return params


def is_token_id(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) <= 32 and int(key) < 2**32


def stop_conditions(body: GenerationBody) -> pb.StopConditions:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    conditions = pb.StopConditions(
        stop_strings=stops,
        stop_token_ids=body.stop_token_ids,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        include_stop=body.include_stop_str_in_output,
    )
    limit = max_tokens(body)
    if limit is not None:
        conditions.max_tokens = limit
    # In a conversation max_tokens is a bound, which agents set far beyond what is left of the context. Of a completion
    # all tokens are meant, unless the number is ours.
    conditions.clamp = limit is not None and (isinstance(body, ChatRequest) or body.max_tokens is None)
    return conditions


def max_tokens(body: GenerationBody) -> int | None:
    if isinstance(body, ChatRequest):
        return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return 16 if body.max_tokens is None else body.max_tokens


def stream_options(body: GenerationBody) -> pb.StreamOptions:
    wanted = body.stream_options
    return pb.StreamOptions(
        mode=pb.STREAM_MODE_DELTAS if body.stream else pb.STREAM_MODE_FINAL,
        usage_in_every_message=bool(wanted and wanted.include_usage and wanted.continuous_usage_stats),
    )


def logprob_options(top_n: int, body: GenerationBody) -> pb.LogprobOptions:
    return pb.LogprobOptions(top_n=top_n, token_ids=body.logprob_token_ids, token_bytes=True)


def keep_side(body: GenerationBody) -> common_pb2.Truncation:
    """vLLM keeps the end by default ("left" is the side that is cut)."""
    cut_left = body.truncation_side != "right"
    return common_pb2.TRUNCATION_KEEP_END if cut_left else common_pb2.TRUNCATION_KEEP_START


def constraint_of(body: GenerationBody) -> pb.Constraint | None:
    formatted = response_format_constraint(body.response_format) if body.response_format else None
    structured = structured_constraint(body.structured_outputs) if body.structured_outputs else None
    if formatted is not None and structured is not None:
        raise invalid("structured_outputs", "structured_outputs and response_format exclude each other.")
    return formatted or structured


def response_format_constraint(wanted: ResponseFormat) -> pb.Constraint | None:
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return pb.Constraint(json_object=pb.AnyJsonObject())
    if wanted.type == "structural_tag":
        return pb.Constraint(structural_tag=json.dumps(wanted.model_dump(by_alias=True, exclude_none=True)))
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise invalid("response_format.json_schema", "response_format.json_schema.schema is required.")
    # Without `strict`, OpenAI's promise is a best effort: what cannot be enforced is left out. With it, refused.
    return pb.Constraint(json_schema=json.dumps(wanted.json_schema.schema_), lenient=not wanted.json_schema.strict)


def structured_constraint(wanted: StructuredOutputs) -> pb.Constraint:
    given = {name: value for name in type(wanted).model_fields if (value := getattr(wanted, name)) is not None}
    if len(given) != 1:
        raise invalid("structured_outputs", f"structured_outputs takes exactly one constraint, got {len(given)}.")
    ((name, value),) = given.items()
    if name == "choice":
        return pb.Constraint(choices=pb.StringChoices(values=value))
    if name == "json_object":
        if not value:
            raise invalid("structured_outputs.json_object", "structured_outputs.json_object must be true.")
        return pb.Constraint(json_object=pb.AnyJsonObject())
    text = value if isinstance(value, str) else json.dumps(value)
    constraint = pb.Constraint()
    setattr(constraint, {"json_": "json_schema", "grammar": "ebnf"}.get(name, name), text)
    return constraint
