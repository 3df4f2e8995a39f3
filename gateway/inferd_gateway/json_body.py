"""Request bodies: strict JSON, bounded in depth, and unambiguous."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request

from inferd_gateway import strict_json
from inferd_gateway.errors import ApiError, invalid

MAX_DEPTH = 128
THREAD_BYTES = 64 * 1024  # parsing more than this would hold the event loop for over a millisecond


class JsonRequest(Request):
    """A request whose body is parsed here once; FastAPI then finds it parsed."""

    async def load_json(self) -> None:
        """Raises a 400 or 415 ApiError."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("", "application/json") and not (kind.startswith("application/") and kind.endswith("+json")):
            raise ApiError(415, f"The body must be application/json, got {kind[:80]!r}.")
        body = await self.body()
        parsed = await asyncio.to_thread(parse, body) if len(body) > THREAD_BYTES else parse(body)
        if not isinstance(parsed, dict):
            raise invalid(None, f"The body must be a JSON object, got {type(parsed).__name__}.")
        self._json = parsed


def parse(body: bytes) -> Any:
    """RFC 8259 JSON in UTF-8 without a BOM, no number beyond a double, no key twice, at most MAX_DEPTH deep."""
    try:
        text = body.decode("utf-8")
        parsed = strict_json.loads(text, unique_keys=True)
    except UnicodeDecodeError:
        raise invalid(None, "The body is not valid UTF-8.") from None
    except RecursionError:
        raise invalid(None, f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except strict_json.TooLarge as error:
        raise invalid(error.path[:256] or None, f"{error.path[:256] or 'The body'}: {error}.") from None
    except ValueError as error:
        raise invalid(None, f"The body is not valid JSON: {error}") from None
    # Counting brackets is enough for nearly every body.
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(parsed)
    return parsed


def _check_depth(parsed: Any) -> None:
    level = [parsed]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for container in level
            for value in (container.values() if isinstance(container, dict) else container)
            if isinstance(value, dict | list)
        ]
        if not level:
            return
    raise invalid(None, f"The body is nested deeper than {MAX_DEPTH} levels.")
