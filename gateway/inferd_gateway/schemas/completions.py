"""POST /v1/completions."""

from __future__ import annotations

from inferd_gateway.schemas.common import GenerationBody, UInt32


class CompletionRequest(GenerationBody):
    prompt: str | list[UInt32] | list[str] | list[list[UInt32]]
    logprobs: UInt32 | None = None
    best_of: UInt32 | None = None
