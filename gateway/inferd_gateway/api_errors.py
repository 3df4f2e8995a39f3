"""Errors in the shape of the API that was called: OpenAI's, or Anthropic's under /v1/messages."""

from __future__ import annotations

from typing import Any

from inferd_gateway.errors import ApiError, ContextOverflow

ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(path: str) -> bool:
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def error_body(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    return anthropic_error(error, request_id) if is_anthropic(path) else error.body


def anthropic_error(error: ApiError, request_id: str) -> dict[str, Any]:
    kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = error.anthropic_message if isinstance(error, ContextOverflow) else error.message
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
