"""Checks of single fields. Each error names the field by its proto path, the bound and the value."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from inferd.errors import InvalidParameter

MAX_DURATION_S = 86400.0
MAX_NAMED_IDS = 32  # of those that an error is about


def check_number(field: str, value: float, low: float, high: float, *, open_low: bool = False) -> float:
    """`value` when it is finite and in [low, high] (or (low, high])."""
    if not math.isfinite(value) or value < low or value > high or (open_low and value == low):
        bound = f"greater than {low:g} and at most {high:g}" if open_low else f"between {low:g} and {high:g}"
        raise InvalidParameter(f"{field} must be {bound}, got {value:.6g}", field=field)
    return value


def check_count(field: str, values: Sized, limit: int) -> None:
    if len(values) > limit:
        raise InvalidParameter(f"{field} has {len(values)} entries, at most {limit} are allowed", field=field)


def check_at_most(field: str, value: int, limit: int, low: int = 0) -> int:
    if not low <= value <= limit:
        raise InvalidParameter(f"{field} must be between {low} and {limit}, got {value}", field=field)
    return value


def check_token_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """All ids are of the vocabulary."""
    if not ids or max(ids) < vocab_size:
        return
    bad = list(dict.fromkeys(token_id for token_id in ids if token_id >= vocab_size))
    named = ", ".join(map(str, bad[:MAX_NAMED_IDS])) + (
        f" and {len(bad) - MAX_NAMED_IDS} more" * (len(bad) > MAX_NAMED_IDS)
    )
    ids_word = "id" if len(bad) == 1 else "ids"
    raise InvalidParameter(
        f"{field} has the token {ids_word} {named}, outside the vocabulary of {vocab_size} tokens", field=field
    )


def check_enum(field: str, value: int, names: Sequence[str]) -> None:
    """Proto enums are open; ours are not."""
    if not 0 <= value < len(names):
        raise InvalidParameter(f"{field} has the unknown value {value}", field=field)


def check_duration(field: str, duration: Duration, *, allow_zero: bool = False) -> float:
    """Seconds."""
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0 or (seconds == 0 and not allow_zero) or seconds > MAX_DURATION_S:
        bound = "at least 0" if allow_zero else "greater than 0"
        raise InvalidParameter(
            f"{field} must be {bound} and at most {MAX_DURATION_S:g} seconds, got {seconds:g}", field=field
        )
    return seconds


def refuse_unknown_fields(message: Message) -> None:
    """A field of a newer contract asks for something this server would silently leave out."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():
        path, number = find_unknown(message, "")
        raise InvalidParameter(
            f"{path or 'the request'} has the field number {number}, which this server does not know",
            field=path or None,
        )


def find_unknown(message: Message, path: str) -> tuple[str, int]:
    """Path of the first submessage with an unknown field, and its number."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return path, unknown[0].field_number
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        below = f"{path}.{field.name}" if path else field.name
        for item in [value] if isinstance(value, Message) else value:
            found = find_unknown(item, below)
            if found[1]:
                return found
    return "", 0
