"""What /v1/embeddings, /pooling, /classify, /score and /rerank answer; see schemas/replies.py."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from inferd_gateway.schemas.replies import Count, ReadUsage, Reply


class Embedding(Reply):
    """A list of numbers, or their little-endian bytes in base64."""

    index: Count
    object: Literal["embedding"]
    embedding: list[float] | str


class Pooled(Reply):
    """A vector as in an embedding, or the scores of the classes."""

    index: Count
    object: Literal["pooling"]
    data: list[float] | str


class Classified(Reply):
    index: Count
    label: str
    probs: list[float]
    num_classes: Count


class Scored(Reply):
    index: Count
    object: Literal["score"]
    score: float


Item = TypeVar("Item")


class Listing(Reply, Generic[Item]):
    """One item per input, in order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Item]
    usage: ReadUsage


class EmbeddingList(Listing[Embedding]):
    pass


class PooledList(Listing[Pooled]):
    pass


class ClassifiedList(Listing[Classified]):
    pass


class ScoredList(Listing[Scored]):
    pass


class DocumentReply(Reply):
    text: str


class Ranked(Reply):
    """index: of the document in the request."""

    index: Count
    relevance_score: float
    document: DocumentReply | None = None


class Ranking(Reply):
    """By falling score."""

    id: str
    model: str
    usage: ReadUsage
    results: list[Ranked]
