"""POST /v1/embeddings, /pooling, /classify, /score and /rerank: OpenAI's fields and vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import Body, Integer, OrMinusOne, Positive, Priority, TokenIds, UInt32

MAX_INPUTS = 2048  # OpenAI's own limit


class PoolingBody(Body):
    """What the routes have in common."""

    model: str | None = None
    """A served name or alias."""
    truncate_prompt_tokens: OrMinusOne | None = None
    """Cut longer inputs to this many tokens; -1: to what the model takes. Unset: too long an input is refused."""
    truncation_side: Literal["left", "right"] | None = None
    """Which end is cut. right."""
    priority: Priority | None = None
    """Lower runs first. 0."""
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,96}$")] | None = None
    """Becomes part of the reply's id and of the daemon's log."""
    # Accepted: they change nothing that comes back.
    user: str | None = None
    """Accepted; changes nothing that comes back."""
    padding: bool | None = None
    """Accepted; changes nothing that comes back."""


class InputBody(PoolingBody):
    input: str | Annotated[TokenIds | list[str] | list[TokenIds], Field(max_length=1 << 20)]
    """Text, token ids, or a list of either; at most 2048 inputs."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its own. true."""


class VectorBody(InputBody):
    """use_activation: normalize the vectors; unset: as the model does."""

    encoding_format: Literal["float", "base64"] | None = None
    """float: numbers; base64: the bytes of embed_dtype. float."""
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type of an element in base64. float32."""
    endianness: Literal["native", "little", "big"] | None = None
    """Order of bytes in base64. native."""
    use_activation: bool | None = None
    """Normalize the vectors. Unset: as the model does."""


class EmbeddingRequest(VectorBody):
    dimensions: Positive | None = None
    """A smaller size that the model was trained to be cut to."""


class PoolingRequest(VectorBody):
    """task embed gives vectors, classify the scores of the classification head; unset: what the model can."""

    task: Literal["embed", "classify"] | None = None
    """embed: vectors; classify: scores of the head. Unset: what the model can."""
    dimensions: None = None  # vLLM refuses it here too


class ClassifyRequest(InputBody):
    use_activation: bool | None = None
    """false gives logits. Unset: the checkpoint's own activation."""


Texts = str | Annotated[list[str], Field(max_length=MAX_INPUTS)]


class ScoreRequest(PoolingBody):
    """One of the four spellings of two sides: 1:1, 1:N or N:N."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    use_activation: bool | None = None
    """false gives logits. Unset: the checkpoint's own activation."""
    max_tokens_per_query: Annotated[Integer, Field(ge=0, le=0)] | None = None
    """0 alone: not supported."""
    max_tokens_per_doc: Annotated[Integer, Field(ge=0, le=0)] | None = None
    """0 alone: not supported."""


class DocumentText(Body):
    text: str


class RerankRequest(PoolingBody):
    query: str
    """What the documents are ranked by."""
    documents: Annotated[list[str | DocumentText], Field(min_length=1, max_length=MAX_INPUTS)]
    """At most 2048."""
    top_n: UInt32 | None = None
    """How many results; 0 or unset: all."""
    return_documents: bool | None = None
    """Put the documents' text into the results. true."""
    use_activation: bool | None = None
    """false gives logits. Unset: the checkpoint's own activation."""
    max_tokens_per_query: Annotated[Integer, Field(ge=0, le=0)] | None = None
    """0 alone: not supported."""
    max_tokens_per_doc: Annotated[Integer, Field(ge=0, le=0)] | None = None
    """0 alone: not supported."""


def sides(body: ScoreRequest) -> tuple[str, str, dict[str, Any]]:
    """(name of the first side, of the second, all that were given)."""
    names = ("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    for first, second in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        if set(given) == {first, second}:
            return first, second, given
    return "", "", given
