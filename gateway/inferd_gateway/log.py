"""Log lines: one record is one line, whatever a caller put into it."""

from __future__ import annotations

import json
import logging
import sys

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LineFormatter(logging.Formatter):
    """Text or JSON; fields passed as `extra=` stay fields, control characters are escaped."""

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self._json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in STANDARD}
        clock = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._json:
            fields = {"time": clock, "level": record.levelname.lower(), "process": "gateway"}
            fields |= {"message": record.getMessage(), **extra} | ({"exception": trace} if trace else {})
            return json.dumps(fields, default=str)
        text = record.getMessage() + "".join(f" {key}={value}" for key, value in extra.items())
        line = f"{clock} {record.levelname.lower():<7} gateway: {text.encode('unicode_escape').decode('ascii')}"
        return f"{line}\n{trace}" if trace else line


def configure_logging(level: str, log_format: str) -> None:
    """Send every logger's records to stderr. Call once, in the entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(log_format))
    logging.basicConfig(level=5 if level == "trace" else level.upper(), handlers=[handler], force=True)
