"""inferd.v1.Constraint -> ConstraintSpec: what can be checked without compiling it."""

from __future__ import annotations

import json

from inferd.config import Limits
from inferd.errors import InvalidConstraint
from inferd.request import ConstraintKind, ConstraintSpec
from inferd.v1 import inference_pb2

MAX_STARTS_AFTER_BYTES = 256
KINDS = {
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "json_object": ConstraintKind.JSON_OBJECT,
    "regex": ConstraintKind.REGEX,
    "ebnf": ConstraintKind.EBNF,
    "choices": ConstraintKind.CHOICES,
    "structural_tag": ConstraintKind.STRUCTURAL_TAG,
}


def constraint_field(pb: inference_pb2.Constraint) -> str:
    """The path of the member that is set."""
    kind = pb.WhichOneof("kind")
    return f"constraint.{kind}" if kind else "constraint"


def constraint_from_pb(pb: inference_pb2.Constraint, limits: Limits) -> ConstraintSpec:
    """Raises InvalidConstraint naming the field."""
    kind, field = pb.WhichOneof("kind"), constraint_field(pb)
    if kind is None:
        raise InvalidConstraint("constraint says nothing: one of its kinds must be set", field=field)
    if len(pb.starts_after.encode()) > MAX_STARTS_AFTER_BYTES:
        raise InvalidConstraint(
            f"constraint.starts_after has {len(pb.starts_after.encode())} bytes, at most {MAX_STARTS_AFTER_BYTES} "
            "are allowed",
            field="constraint.starts_after",
        )
    if pb.lenient and kind != "json_schema":
        raise InvalidConstraint("constraint.lenient is for json_schema", field="constraint.lenient")
    if kind == "choices":
        if not pb.choices.values or "" in pb.choices.values:
            raise InvalidConstraint(f"{field} needs at least one text, and no empty one", field=field)
        source = json.dumps(list(dict.fromkeys(pb.choices.values)), ensure_ascii=False)
    else:
        source = "{}" if kind == "json_object" else getattr(pb, kind)
    size, limit = len(source.encode()), limits.max_regex_bytes if kind == "regex" else limits.max_schema_bytes
    if not 0 < size <= limit:
        raise InvalidConstraint(f"{field} has {size} bytes, between 1 and {limit} are allowed", field=field)
    return ConstraintSpec(KINDS[kind], source, pb.lenient)
