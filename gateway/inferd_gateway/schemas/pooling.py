"""POST /v1/embeddings, /pooling, /classify, /score and /rerank: OpenAI's fields and vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import Body, Priority, UInt32

MAX_INPUTS = 2048  # OpenAI's own limit


class PoolingBody(Body):
    """What the routes have in common."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**32 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Priority | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,96}$")] | None = None
    # Accepted: they change nothing that comes back.
    user: str | None = None
    padding: bool | None = None


class InputBody(PoolingBody):
    input: str | Annotated[list[UInt32] | list[str] | list[list[UInt32]], Field(max_length=1 << 20)]
    add_special_tokens: bool | None = None


class VectorBody(InputBody):
    """use_activation: normalize the vectors; unset: as the model does."""

    encoding_format: Literal["float", "base64"] | None = None
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    endianness: Literal["native", "little", "big"] | None = None
    use_activation: bool | None = None


class EmbeddingRequest(VectorBody):
    dimensions: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None


class PoolingRequest(VectorBody):
    """task embed gives vectors, classify the scores of the classification head; unset: what the model can."""

    task: Literal["embed", "classify"] | None = None
    dimensions: None = None  # vLLM refuses it here too


class ClassifyRequest(InputBody):
    use_activation: bool | None = None


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
    max_tokens_per_query: Annotated[int, Field(ge=0, le=0)] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=0, le=0)] | None = None


class DocumentText(Body):
    text: str


class RerankRequest(PoolingBody):
    query: str
    documents: Annotated[list[str | DocumentText], Field(min_length=1, max_length=MAX_INPUTS)]
    top_n: UInt32 | None = None
    return_documents: bool | None = None
    use_activation: bool | None = None
    max_tokens_per_query: Annotated[int, Field(ge=0, le=0)] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=0, le=0)] | None = None


def sides(body: ScoreRequest) -> tuple[str, str, dict[str, Any]]:
    """(name of the first side, of the second, all that were given)."""
    names = ("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    for first, second in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        if set(given) == {first, second}:
            return first, second, given
    return "", "", given
