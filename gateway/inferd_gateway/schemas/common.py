"""Fields that several routes share, and what is known but cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from inferd_gateway.errors import invalid


def whole(value: Any) -> Any:
    """5.0 is an integer to JSON Schema, and some clients have no other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_numbers(values: Any) -> Any:
    return (
        [whole(value) for value in values] if isinstance(values, list) and float in set(map(type, values)) else values
    )


Integer = Annotated[int, BeforeValidator(whole)]
UInt32 = Annotated[Integer, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[Integer, Field(ge=1, le=2**32 - 1)]
OrMinusOne = Annotated[Integer, Field(ge=-1, le=2**32 - 1)]
Int64 = Annotated[Integer, Field(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[Integer, Field(ge=-(2**31 - 1), le=2**31)]  # the daemon's, which runs the other way
# Looked at as a list first: a prompt may have a hundred thousand of them.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**32 - 1)]], BeforeValidator(whole_numbers)]

# The limits of all routes that take a conversation. The bytes of a body bound all else.
MAX_MESSAGES = 100_000
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]

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

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    """A last chunk without choices carries the usage."""
    continuous_usage_stats: bool | None = None
    """Usage so far in every chunk; with include_usage."""
    include_obfuscation: bool | None = None
    """Accepted; changes nothing that comes back."""


class JsonSchemaFormat(Body):
    name: str | None = None
    """For the caller's own use."""
    description: str | None = None
    """For the caller's own use."""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """JSON Schema, draft 2020-12. Required."""
    strict: bool | None = None
    """Refuse a schema that cannot be enforced in full; otherwise what cannot be is left out."""


class ResponseFormat(Body):
    """The last three are the structural tag, which the daemon reads."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    """With type json_schema."""
    format: dict[str, Any] | None = None
    """With type structural_tag."""
    structures: list[Any] | None = None
    """With type structural_tag: its older form."""
    triggers: list[str] | None = None
    """With structures."""


class StructuredOutputs(Body):
    """Exactly one of these."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    """JSON Schema, as an object or as text."""
    regex: str | None = None
    """What the whole output matches, in the syntax of Rust's regex crate."""
    choice: list[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """EBNF, as llama.cpp and xgrammar write it; the rule `root`."""
    json_object: bool | None = None
    """true: any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with constrained parts."""


class GenerationBody(Body):
    """What chat and completions have in common; names and meanings as OpenAI and vLLM have them."""

    model: str | None = None
    """A served name or alias; may be left out when only one model is served."""
    temperature: float | None = None
    """0 to 2, 1; 0 is greedy. Unset sampling fields take the model's own defaults first."""
    top_p: float | None = None
    """Above 0, to 1. 1: all tokens."""
    top_k: OrMinusOne | None = None
    """0 or -1: all tokens."""
    min_p: float | None = None
    """0 to 1, 0. Drops tokens less probable than min_p times the most probable."""
    presence_penalty: float | None = None
    """-2 to 2, 0. Subtracted once from the logit of every generated token."""
    frequency_penalty: float | None = None
    """-2 to 2, 0. Subtracted per occurrence among the generated tokens."""
    repetition_penalty: float | None = None
    """Above 0, to 10, 1. Divides positive and multiplies negative logits of tokens of prompt and output."""
    seed: Int64 | None = None
    """Same seed, prompt and parameters: same tokens, whatever else runs."""
    logit_bias: dict[str, float] | None = None
    """Token id, as text, to a value of -100 to 100 that is added to its logit."""
    allowed_token_ids: TokenIds | None = None
    """No other token is sampled."""
    bad_words: list[str] | None = None
    """Texts that are never completed."""
    max_tokens: UInt32 | None = None
    """Most tokens to generate. Chat: to the end of the context; completions: 16, and 0 with echo."""
    min_tokens: UInt32 | None = None
    """No end-of-text, stop token or stop string ends the choice before. 0."""
    stop: str | list[str] | None = None
    """Texts that end the choice; they are left out of it."""
    stop_token_ids: TokenIds | None = None
    """Token ids that end the choice."""
    ignore_eos: bool | None = None
    """Generate on after end-of-text."""
    include_stop_str_in_output: bool | None = None
    """Keep the stop string."""
    n: Positive | None = None
    """Choices. 1."""
    stream: bool | None = None
    """Server-sent events, ended by `data: [DONE]`."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the text. true."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its own. Completions: as the tokenizer does; chat: false, the template writes them."""
    prompt_logprobs: UInt32 | None = None
    """The most probable tokens at every position of the prompt; 0: only the prompt's own. Not with stream."""
    logprob_token_ids: TokenIds | None = None
    """Further token ids to report at every position; with logprobs."""
    return_tokens_as_token_ids: bool | None = None
    """Tokens of log probabilities are written `token_id:N`."""
    return_token_ids: bool | None = None
    """Add `token_ids` to choices and `prompt_token_ids` to the reply."""
    truncate_prompt_tokens: OrMinusOne | None = None
    """Cut the prompt to this many tokens; -1: to what the context holds. Unset: too long a prompt is refused."""
    truncation_side: Literal["left", "right"] | None = None
    """Which end is cut. left."""
    response_format: ResponseFormat | None = None
    """What the output must be; excludes structured_outputs."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's form of the same."""
    priority: Priority | None = None
    """Lower runs first. 0."""
    cache_salt: str | None = None
    """Cached prefixes are shared under the same salt alone. At most 128 characters."""
    session_id: str | None = None
    """Requests of a session go to the same daemon, where one of several can be chosen."""
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,96}$")] | None = None
    """Becomes part of the reply's id and of the daemon's log."""
    echo: bool | None = None
    """Completions only: the prompt stands before the output, with its log probabilities where logprobs is set."""
    # Accepted: they change nothing that comes back.
    user: str | None = None
    """Accepted; changes nothing that comes back."""
    metadata: dict[str, Any] | None = None
    """Accepted; changes nothing that comes back."""
    store: bool | None = None
    """Accepted; changes nothing that comes back. Nothing is stored."""
    service_tier: str | None = None
    """Accepted; changes nothing that comes back."""
    safety_identifier: str | None = None
    """Accepted; changes nothing that comes back."""
    prompt_cache_key: str | None = None
    """As session_id."""


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
