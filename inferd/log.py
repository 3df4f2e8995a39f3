"""Logging set-up: one line per record, human-readable or JSON, with extra fields kept as fields."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

LogFormat = Literal["text", "json"]


def configure_logging(level: str = "info", log_format: LogFormat = "text", process: str = "inferd") -> None:
    """Send every logger's records to stderr. Call once, in an entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """What the caller passed as `extra=`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "process": self.process,
            "logger": record.name,
            "message": record.getMessage(),
            **extra_fields(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00.123 info  inferd: message key=value`; control characters are escaped, so one record is one line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in extra_fields(record).items())
        text = f"{record.getMessage()}{fields}".encode("unicode_escape").decode("ascii")
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} {self.process}: {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
