"""What the routes answer, in OpenAI's and vLLM's shapes: for /openapi.json, which tests hold every answer against.

The routes build plain dicts; these models describe them to the field.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]


class Reply(BaseModel):
    """Nothing but the fields that are named. A field with a default may be left out."""

    model_config = ConfigDict(extra="forbid")


class Error(Reply):
    """param: the field of the body that is at fault. code: which row of the error table."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every answer that is not 2xx, and the last event of a stream that broke."""

    error: Error


class PromptTokensDetails(Reply):
    cached_tokens: Count


class CompletionTokensDetails(Reply):
    reasoning_tokens: Count


class Usage(Reply):
    """completion_tokens counts all that was generated, the end-of-text token too."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class ReadUsage(Reply):
    """Of what generates nothing."""

    prompt_tokens: Count
    total_tokens: Count


class TokenLogprob(Reply):
    """A logprob is never below -9999. bytes: the token's, for characters that are split between tokens."""

    token: str
    logprob: float
    bytes: list[int]


class PositionLogprobs(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Reply):
    content: list[PositionLogprobs] | None
    refusal: None


class PromptTokenLogprob(Reply):
    logprob: float
    rank: Count
    decoded_token: str


# Per position of the prompt, by token id; null for the first, which nothing stands before.
PromptLogprobs = list[dict[str, PromptTokenLogprob] | None]
Finish = Literal["stop", "length", "tool_calls"]


class CalledFunction(Reply):
    name: str
    arguments: str


class MadeToolCall(Reply):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Reply):
    """content is null beside tool calls when there is none."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | None = None
    tool_calls: list[MadeToolCall] | None = None


class ChatChoice(Reply):
    """stop_reason: the stop string or stop token id that ended the choice."""

    index: Count
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_reason: str | int | None
    token_ids: list[int] | None = None


class GeneratedReply(Reply):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(GeneratedReply):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class FunctionDelta(Reply):
    name: str | None = None
    arguments: str


class ToolCallDelta(Reply):
    """The first of a call has its id and name; the rest adds to its arguments."""

    index: Count
    function: FunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class MessageDelta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Reply):
    index: Count
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(GeneratedReply):
    """The data of one event; the last is [DONE]. usage: only with stream_options.include_usage."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class CompletionLogprobColumns(Reply):
    """Parallel lists. text_offset counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Reply):
    index: Count
    text: str
    logprobs: CompletionLogprobColumns | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(GeneratedReply):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Reply):
    index: Count
    text: str
    logprobs: CompletionLogprobColumns | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionChunk(GeneratedReply):
    """The data of one event; the last is [DONE]. usage: only with stream_options.include_usage."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class NamedEvent(Reply):
    """One event of a stream whose events have types, as the APIs of Responses and Messages define them."""

    event: str
    data: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]


class Model(Reply):
    """root: the name at the daemon."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: Count


class ModelList(Reply):
    object: Literal["list"]
    data: list[Model]


class TokenizeReply(Reply):
    count: Count
    max_model_len: Count
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(Reply):
    prompt: str


class Status(Reply):
    status: str


class Version(Reply):
    version: str


class Load(Reply):
    """The requests that run through this gateway."""

    server_load: Count
