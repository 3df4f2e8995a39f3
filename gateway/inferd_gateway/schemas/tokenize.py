"""POST /tokenize and POST /detokenize."""

from __future__ import annotations

from inferd_gateway.schemas.chat import ChatFields
from inferd_gateway.schemas.common import Body, TokenIds


class TokenizeTextRequest(Body):
    prompt: str
    """The text."""
    model: str | None = None
    """A served name or alias."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its own. true."""
    return_token_strs: bool | None = None
    """Add each token as the vocabulary's file writes it."""


class TokenizeChatRequest(ChatFields):
    model: str | None = None
    """A served name or alias."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its own. false: the template writes them."""
    return_token_strs: bool | None = None
    """Add each token as the vocabulary's file writes it."""


class DetokenizeRequest(Body):
    tokens: TokenIds
    """Token ids."""
    model: str | None = None
    """A served name or alias."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out. false."""
