"""POST /v1/completions."""

from __future__ import annotations

from inferd_gateway.schemas.common import GenerationBody, TokenIds, UInt32


class CompletionRequest(GenerationBody):
    prompt: str | TokenIds | list[str] | list[TokenIds]
    """Text, token ids, or a list of either; each prompt gets n choices."""
    logprobs: UInt32 | None = None
    """The most probable tokens per position, beside the chosen one."""
    best_of: UInt32 | None = None
    """Only n itself."""
