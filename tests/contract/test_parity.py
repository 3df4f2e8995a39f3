"""Every field of an HTTP generation against the same call over gRPC: same tokens, log probabilities, finish, usage.

The fields come from the published schemas: a new one without a case in inferd.testing.http_fields fails here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from inferd.testing.http_fields import (
    CHAT,
    CHAT_PATH,
    CHATS,
    COMMON,
    COMPLETION,
    COMPLETION_PATH,
    COMPLETIONS,
    SHOWN,
    Case,
    build_call,
)
from inferd.testing.parity import Entrances, Outcome

ROUTES = {COMPLETION_PATH: (COMPLETION, COMPLETIONS), CHAT_PATH: (CHAT, CHATS)}


def cases() -> list[Any]:
    """One value a field by default; the others, and what chats share with completions, with `make contract-full`."""
    found = []
    for path, (_, fields) in ROUTES.items():
        for name, case in fields.items():
            for index, value in enumerate(case.values):
                more = index > 0 or (path == CHAT_PATH and case is COMMON.get(name))
                marks = [pytest.mark.slow] if more else []
                found.append(pytest.param(path, name, value, marks=marks, id=f"{path}:{name}"))
    return found


def both(entrances: Entrances, path: str, changes: Mapping[str, Any]) -> tuple[Outcome, Outcome]:
    """(over gRPC, over HTTP), the prefix cache warm for both."""
    base, cases = ROUTES[path]
    body = {**base, **SHOWN, **changes}
    call = build_call(body, cases, entrances)
    entrances.generate(call.request, call.names)
    over_http = entrances.ask(path, body)
    over_grpc = entrances.generate(call.request, call.names)
    assert isinstance(over_grpc, Outcome), over_grpc
    assert isinstance(over_http, Outcome), over_http
    for name, value in body.items():
        if value is not None:
            over_grpc = cases[name].shape(over_grpc, call, value)
    return over_grpc, over_http


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_of_the_schema_has_a_case(entrances: Entrances, path: str) -> None:
    document = entrances.http.get("/openapi.json").json()
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert set(schema["properties"]) == set(ROUTES[path][1])


@pytest.mark.parametrize(("path", "name", "value"), cases())
def test_both_entrances_give_the_same(entrances: Entrances, path: str, name: str, value: Any) -> None:
    case: Case = ROUTES[path][1][name]
    over_grpc, over_http = both(entrances, path, {**case.around, name: value})
    assert over_http == over_grpc
    if case.matters and value == case.values[0]:
        without, _ = both(entrances, path, case.around)
        assert over_http != without, "the field makes no difference, so this proves nothing"
