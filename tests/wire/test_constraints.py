"""Constrained generation over the wire: every kind, refusals that name the field, hostile input, dead processes."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest

from inferd.request import FinishReason
from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.hostile_constraints import hostile_constraints
from inferd.testing.wire import collect, expected_tokens, fails, make_generate
from inferd.v1.inference_pb2_grpc import InferenceServiceStub

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


def two_tags(schema: Any) -> dict[str, str]:
    contents = [{"type": "json_schema", "json_schema": each} for each in ({"type": "integer"}, schema)]
    tags = [{"type": "tag", "begin": "<", "content": content, "end": ">"} for content in contents]
    return {"structural_tag": json.dumps({"format": {"type": "sequence", "elements": tags}})}


def is_json_of(schema: Any) -> Any:
    return lambda text: jsonschema.validate(json.loads(text), schema) is None


@pytest.mark.parametrize(
    ("constraint", "is_valid"),
    [
        ({"json_schema": json.dumps(SCHEMA)}, is_json_of(SCHEMA)),
        ({"json_object": {}}, is_json_of({"type": "object"})),
        ({"regex": "[0-9]{4}-(yes|no)"}, re.compile("[0-9]{4}-(yes|no)").fullmatch),
        ({"ebnf": 'root ::= "<" [a-f]+ ">"'}, re.compile("<[a-f]+>").fullmatch),
        ({"choices": {"values": ["red", "green"]}}, {"red", "green"}.__contains__),
        (
            {
                "structural_tag": json.dumps(
                    {"format": {"type": "sequence", "elements": [{"type": "regex", "pattern": "ab?"}]}}
                )
            },
            {"a", "ab"}.__contains__,
        ),
    ],
)
def test_every_kind_for_every_choice(stub: InferenceServiceStub, constraint: Any, is_valid: Any) -> None:
    choices = collect(stub.Generate(make_generate(max_tokens=200, num_choices=3, constraint=constraint)))

    assert len(choices) == 3
    for choice in choices.values():
        assert is_valid(choice.text), choice.text
        assert choice.reason is FinishReason.EOS
        assert choice.finish is not None
        assert not choice.finish.HasField("stop_token_id")
        assert bytes(choice.token_ids).decode() == choice.text


def test_it_starts_after_a_text(stub: InferenceServiceStub) -> None:
    text = bytes(expected_tokens(40)).decode("utf-8", "replace")
    marker = next(each for each in re.findall(r"[\x20-\x7e]{2}", text))
    constraint = {"regex": "[0-9]{5}", "starts_after": marker}
    choice = collect(stub.Generate(make_generate(max_tokens=100, constraint=constraint)))[0]

    assert re.search(re.escape(marker) + "[0-9]{5}$", choice.text)
    assert choice.reason is FinishReason.EOS


@pytest.mark.parametrize(
    ("constraint", "field"),
    [
        ({}, "constraint"),
        ({"starts_after": "x"}, "constraint"),
        ({"regex": ""}, "constraint.regex"),
        ({"regex": "a("}, "constraint.regex"),
        ({"regex": "a" * 4097}, "constraint.regex"),
        ({"json_schema": "{"}, "constraint.json_schema"),
        ({"json_schema": '{"type": "array", "uniqueItems": true}'}, "constraint.json_schema"),
        ({"json_schema": " " * 65_537}, "constraint.json_schema"),
        ({"ebnf": "root ::= missing"}, "constraint.ebnf"),
        ({"choices": {"values": []}}, "constraint.choices"),
        ({"choices": {"values": ["a", ""]}}, "constraint.choices"),
        ({"structural_tag": "[]"}, "constraint.structural_tag"),
        (two_tags({"uniqueItems": True}), "constraint.structural_tag.format.elements[1].content.json_schema"),
        (two_tags({"const": 2**53 + 1}), "constraint.structural_tag.format.elements[1].content.json_schema"),
        (two_tags({"pattern": "a("}), "constraint.structural_tag.format.elements[1].content.json_schema"),
        ({"regex": "a", "starts_after": "x" * 257}, "constraint.starts_after"),
        ({"regex": "a", "lenient": True}, "constraint.lenient"),
    ],
)
def test_refusals_name_the_field(stub: InferenceServiceStub, constraint: Any, field: str) -> None:
    failure = fails(stub.Generate(make_generate(constraint=constraint)))

    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_CONSTRAINT")
    assert failure.fields == (field,)
    assert failure.message.startswith(field)


def test_lenient_schemas_are_accepted(stub: InferenceServiceStub) -> None:
    schema = {"type": "array", "maxItems": 1, "items": {"type": "null"}, "uniqueItems": True}
    constraint = {"json_schema": json.dumps(schema), "lenient": True}
    choice = collect(stub.Generate(make_generate(max_tokens=200, constraint=constraint)))[0]
    assert json.loads(choice.text) in ([], [None])


def test_a_dead_end_fails_the_call(stub: InferenceServiceStub) -> None:
    """The only text there is needs a token that may not be drawn yet."""
    stop = {"stop_token_ids": [ord("b")], "min_tokens": 5}
    failure = fails(stub.Generate(make_generate(constraint={"regex": "ab"}, stop=stop)))
    assert (failure.code, failure.reason) == ("ABORTED", "CONSTRAINT_FAILED")


@pytest.fixture(scope="module")
def own_daemon() -> Iterator[tuple[DaemonProcess, InferenceServiceStub]]:
    with DaemonProcess(fake_config(), {"behaviour": {"step_s": 0.002}}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            yield daemon, InferenceServiceStub(channel)


def processes(daemon: DaemonProcess, name: str) -> list[int]:
    """The daemon's children that run this module."""
    command = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in daemon.core_pids()}
    return [pid for pid, line in command.items() if name in line]


@pytest.mark.timeout(400)
def test_hostile_constraints_hurt_nobody(own_daemon: tuple[DaemonProcess, InferenceServiceStub]) -> None:
    daemon, stub = own_daemon
    (core,) = processes(daemon, "fake_core")
    done = threading.Event()
    neighbours: list[list[int]] = []

    def neighbour() -> None:
        while not done.is_set():
            neighbours.append(collect(stub.Generate(make_generate(max_tokens=60)))[0].token_ids)

    thread = threading.Thread(target=neighbour)
    thread.start()
    outcomes: dict[str, str] = {}
    try:
        for name, constraint in hostile_constraints().items():
            outcomes[name] = outcome(stub, constraint)
    finally:
        done.set()
        thread.join()

    assert len(outcomes) >= 60
    assert set(outcomes.values()) <= {"OK", "INVALID_CONSTRAINT", "CONSTRAINT_FAILED"}, outcomes
    assert neighbours == [expected_tokens(60)] * len(neighbours)
    assert len(neighbours) > 1
    assert processes(daemon, "fake_core") == [core]
    assert outcome(stub, {"regex": "ok"}) == "OK"


def outcome(stub: InferenceServiceStub, constraint: dict[str, Any]) -> str:
    """OK, or the reason of the failure, within what a check and the restart of its process may take."""
    try:
        collect(stub.Generate(make_generate(max_tokens=40, constraint=constraint), timeout=30))
    except grpc.RpcError:
        return fails(stub.Generate(make_generate(max_tokens=40, constraint=constraint), timeout=30)).reason
    return "OK"


def test_a_dead_constraint_process_is_replaced(own_daemon: tuple[DaemonProcess, InferenceServiceStub]) -> None:
    daemon, stub = own_daemon
    assert outcome(stub, {"regex": "first"}) == "OK"
    for pid in processes(daemon, "constraint_process"):
        os.kill(pid, signal.SIGKILL)

    assert outcome(stub, {"regex": "first"}) == "OK", "remembered"
    assert outcome(stub, {"regex": "second|third"}) == "OK"


def test_a_core_that_dies_is_replaced_under_a_constrained_stream(
    own_daemon: tuple[DaemonProcess, InferenceServiceStub],
) -> None:
    daemon, stub = own_daemon
    request = make_generate(max_tokens=400, constraint={"regex": "[a-z]{150}[0-9]{150}"})
    whole = collect(stub.Generate(request))[0].text
    stream = stub.Generate(request)
    messages = [next(stream) for _ in range(20)]
    os.kill(processes(daemon, "fake_core")[0], signal.SIGKILL)
    messages += list(stream)

    assert collect(messages)[0].text == whole
    assert re.fullmatch("[a-z]{150}[0-9]{150}", whole)
