"""ModelSpec: a model as frozen data. Loads no torch; knows no tensor and no name of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import NormSpec
from inferd.blocks.parameters import WHOLE, Parameter, Share


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """What a token id becomes before the first layer: a row of the table times `scale`, and what is added to it.

    num_positions    rows of a table of learned positions, 0 for none; position p takes row p + position_offset
    num_token_types  rows of a table of segments (BERT's first and second text), 0 for none
    """

    scale: float = 1.0
    num_positions: int = 0
    position_offset: int = 0
    num_token_types: int = 0
    norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The projection of the last hidden states to logits: cap * tanh(scale * (W h) / cap).

    is_tied: W is the embedding table. scale: a multiplier of the logits. softcap: 0 for none.
    """

    is_tied: bool
    has_bias: bool = False
    scale: float = 1.0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """W tanh(P h) of a text's first token (Devlin et al. 2018): one value per label."""

    num_labels: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model is an embedding, layers, a final norm, and what is computed from the last hidden states.

    context_length  positions that the model was made for, the scaling of its rotary embedding included
    head            None for a model without one: it embeds, and has no logits
    classifier      of a model that gives labels instead
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec | None
    head: HeadSpec | None
    embedding: EmbeddingSpec = EmbeddingSpec()
    classifier: ClassifierSpec | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def is_encoder(self) -> bool:
        """Whether tokens see what comes after them: a text is then computed at once, and nothing is kept of it."""
        return any(layer.mixer.cache_need(WHOLE) is None for layer in self.layers)

    def layer_parameters(self, index: int, share: Share) -> Iterator[Parameter]:
        return self.layers[index].parameters(self.hidden_size, share)

    def first_parameters(self, share: Share) -> Iterator[Parameter]:
        """Of what stands before the layers."""
        hidden, embedding = self.hidden_size, self.embedding
        yield Parameter("embedding.weight", (self.vocab_size, hidden), share.vocabulary(self.vocab_size))
        if embedding.num_positions:
            yield Parameter("positions.weight", (embedding.num_positions, hidden))
        if embedding.num_token_types:
            yield Parameter("token_types.weight", (embedding.num_token_types, hidden))
        if embedding.norm is not None:
            yield from embedding.norm.parameters("embedding_norm", hidden)

    def last_parameters(self, share: Share) -> Iterator[Parameter]:
        """Of what stands behind the layers."""
        hidden, vocabulary = self.hidden_size, share.vocabulary(self.vocab_size)
        if self.norm is not None:
            yield from self.norm.parameters("norm", hidden)
        if self.head is not None and not self.head.is_tied:
            yield Parameter("head.weight", (self.vocab_size, hidden), vocabulary)
        if self.head is not None and self.head.has_bias:
            yield Parameter("head.bias", (self.vocab_size,), vocabulary)
        if self.classifier is not None:
            for name, rows in (("pooler", hidden), ("classifier", self.classifier.num_labels)):
                yield Parameter(f"{name}.weight", (rows, hidden))
                yield Parameter(f"{name}.bias", (rows,))

    def without_head(self, architecture: str) -> ModelSpec:
        """The bare model, as embedding models are saved."""
        return replace(self, architecture=architecture, head=None)
