"""The public error table, written down once more for tests of both entrances: a row that moves by accident fails."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# reason -> (gRPC code, HTTP status, OpenAI type, OpenAI code, whether a client may retry)
CONTRACT: Mapping[str, tuple[str, int, str, str | None, bool]] = MappingProxyType(
    {
        "INVALID_PARAMETER": ("INVALID_ARGUMENT", 400, "invalid_request_error", None, False),
        "INVALID_CONSTRAINT": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_schema", False),
        "CONTEXT_LENGTH_EXCEEDED": ("INVALID_ARGUMENT", 400, "invalid_request_error", "context_length_exceeded", False),
        "MODEL_NOT_FOUND": ("NOT_FOUND", 404, "invalid_request_error", "model_not_found", False),
        "TASK_NOT_SUPPORTED": ("FAILED_PRECONDITION", 400, "invalid_request_error", "unsupported_task", False),
        "DUPLICATE_REQUEST": ("ALREADY_EXISTS", 409, "invalid_request_error", "duplicate_request", False),
        "QUEUE_FULL": ("RESOURCE_EXHAUSTED", 429, "rate_limit_error", "server_overloaded", True),
        "QUEUE_TIMEOUT": ("RESOURCE_EXHAUSTED", 429, "rate_limit_error", "queue_timeout", True),
        "DEADLINE_EXCEEDED": ("DEADLINE_EXCEEDED", 504, "timeout", "timeout", False),
        "NOT_READY": ("UNAVAILABLE", 503, "service_unavailable", "model_loading", True),
        "DRAINING": ("UNAVAILABLE", 503, "service_unavailable", "draining", True),
        "ENGINE_DEAD": ("UNAVAILABLE", 503, "server_error", "engine_unavailable", True),
        "ADMIN_ABORT": ("ABORTED", 503, "server_error", "aborted", False),
        "SLOW_CONSUMER": ("ABORTED", 503, "server_error", "aborted", False),
        "NUMERIC_ERROR": ("ABORTED", 500, "server_error", "generation_failed", False),
        "CONSTRAINT_FAILED": ("ABORTED", 500, "server_error", "generation_failed", False),
        # The gateway's own key: no caller can mend it.
        "MISSING_TOKEN": ("UNAUTHENTICATED", 500, "server_error", "internal_error", False),
        "BAD_TOKEN": ("UNAUTHENTICATED", 500, "server_error", "internal_error", False),
        "FORBIDDEN": ("PERMISSION_DENIED", 403, "permission_error", "forbidden", False),
        "INTERNAL": ("INTERNAL", 500, "server_error", "internal_error", False),
    }
)
