"""Every way a request can fail, as a short tree. One class = one row of the public error table.

    InferdError
    ├── InvalidParameter          INVALID_ARGUMENT     a field is out of its bounds
    │   ├── ContextLengthExceeded                      the prompt does not fit the context
    │   └── InvalidConstraint                          a schema, regex or grammar does not compile
    ├── ModelNotFound             NOT_FOUND
    ├── TaskNotSupported          FAILED_PRECONDITION  the model cannot do what the RPC asks
    ├── DuplicateRequest          ALREADY_EXISTS
    ├── QueueFull, QueueTimeout   RESOURCE_EXHAUSTED   carry a retry time
    ├── DeadlineExceeded          DEADLINE_EXCEEDED
    ├── NotReady, Draining        UNAVAILABLE          carry a retry time
    ├── EngineDead                UNAVAILABLE
    ├── RequestAborted            ABORTED              by an administrator, a stalled reader, a numeric failure,
    │                                                  a constraint that leaves no token
    ├── MissingToken, BadToken    UNAUTHENTICATED
    ├── Forbidden                 PERMISSION_DENIED
    └── InternalError             INTERNAL             our bug; the message stays opaque

`code` is a gRPC status name, `reason` goes into google.rpc.ErrorInfo. assert is for our bugs, these are for callers.
StartupError stands apart: it ends the process with one readable line.
"""

from __future__ import annotations

from typing import ClassVar

DOMAIN = "inferd"


class InferdError(Exception):
    """A failure of one request. `field` names the offending proto field; `retry_after_s` when a retry may succeed."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = metadata or {}


class InvalidParameter(InferdError):
    code = "INVALID_ARGUMENT"
    reason = "INVALID_PARAMETER"


class ContextLengthExceeded(InvalidParameter):
    reason = "CONTEXT_LENGTH_EXCEEDED"


class InvalidConstraint(InvalidParameter):
    reason = "INVALID_CONSTRAINT"


class ModelNotFound(InferdError):
    code = "NOT_FOUND"
    reason = "MODEL_NOT_FOUND"


class TaskNotSupported(InferdError):
    code = "FAILED_PRECONDITION"
    reason = "TASK_NOT_SUPPORTED"


class DuplicateRequest(InferdError):
    code = "ALREADY_EXISTS"
    reason = "DUPLICATE_REQUEST"


class QueueFull(InferdError):
    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"


class QueueTimeout(InferdError):
    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_TIMEOUT"


class DeadlineExceeded(InferdError):
    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class NotReady(InferdError):
    code = "UNAVAILABLE"
    reason = "NOT_READY"


class Draining(InferdError):
    code = "UNAVAILABLE"
    reason = "DRAINING"


class EngineDead(InferdError):
    code = "UNAVAILABLE"
    reason = "ENGINE_DEAD"


class RequestAborted(InferdError):
    code = "ABORTED"
    reason = "ADMIN_ABORT"


class SlowConsumer(RequestAborted):
    reason = "SLOW_CONSUMER"


class NumericError(RequestAborted):
    reason = "NUMERIC_ERROR"


class ConstraintFailed(RequestAborted):
    reason = "CONSTRAINT_FAILED"


class MissingToken(InferdError):
    code = "UNAUTHENTICATED"
    reason = "MISSING_TOKEN"


class BadToken(InferdError):
    code = "UNAUTHENTICATED"
    reason = "BAD_TOKEN"


class Forbidden(InferdError):
    code = "PERMISSION_DENIED"
    reason = "FORBIDDEN"


class InternalError(InferdError):
    code = "INTERNAL"
    reason = "INTERNAL"


class StartupError(Exception):
    """The daemon cannot start: a missing or corrupt checkpoint, a bad flag, too little memory. One readable line."""
