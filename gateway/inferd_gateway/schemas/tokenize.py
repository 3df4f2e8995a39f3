"""POST /tokenize and POST /detokenize."""

from __future__ import annotations

from inferd_gateway.schemas.chat import ChatFields
from inferd_gateway.schemas.common import Body, UInt32


class TokenizeTextRequest(Body):
    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatFields):
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    tokens: list[UInt32]
    model: str | None = None
    skip_special_tokens: bool | None = None
