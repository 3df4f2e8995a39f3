"""Fields that several routes share, and what is known but cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inferd_gateway.errors import invalid

UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Field(ge=-(2**31 - 1), le=2**31)]  # the daemon's, which runs the other way

# Known fields that only these values are accepted for: the others would change what comes back, and are not built.
ONLY: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "spaces_between_special_tokens": (None, True),
    "stream_interval": (None, 1),
    "prompt_embeds": (None,),
    "repetition_detection": (None,),
    "thinking_token_budget": (None,),
    "watermarking": (None, False),
    "return_token_offsets": (None, False),
    "return_weight_versions": (None, False),
    "routed_experts_prompt_start": (None, 0),
    "mm_payload": (None,),
    "kv_transfer_params": (None,),
    "ec_transfer_params": (None,),
    "vllm_xargs": (None, {}),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "functions": (None,),
    "function_call": (None, "none"),
    "documents": (None, []),
    "chat_template": (None,),
    "media_io_kwargs": (None, {}),
    "mm_processor_kwargs": (None, {}),
    "return_prompt_text": (None, False),
}


class Body(BaseModel):
    """Unknown fields are kept aside, to be reported."""

    model_config = ConfigDict(extra="allow", strict=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchemaFormat(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The last three are the structural tag, which the daemon reads."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    format: dict[str, Any] | None = None
    structures: list[Any] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(Body):
    """Exactly one of these."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None


class GenerationBody(Body):
    """What chat and completions have in common; names and meanings as OpenAI and vLLM have them."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**32 - 1)] | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Int64 | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[UInt32] | None = None
    bad_words: list[str] | None = None
    max_tokens: UInt32 | None = None
    min_tokens: UInt32 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[UInt32] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    n: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: UInt32 | None = None
    logprob_token_ids: list[UInt32] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**32 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,96}$")] | None = None
    echo: bool | None = None
    # Accepted: they change nothing that comes back.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def ignored_fields(body: BaseModel, prefix: str = "") -> Iterator[str]:
    """Names of the fields that nobody here knows, nested ones too. Raises a 400 ApiError for a refused value."""
    for name, value in (body.__pydantic_extra__ or {}).items():
        if prefix or name not in ONLY:
            yield prefix + name
        elif value not in ONLY[name]:
            raise invalid(name, f"{name} is not supported.")
    for name in body.__pydantic_fields_set__:
        value = getattr(body, name, None)
        if isinstance(value, BaseModel):
            yield from ignored_fields(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, BaseModel):
                    break
                yield from ignored_fields(item, f"{prefix}{name}[{index}].")
