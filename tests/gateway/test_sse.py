"""Streams, as openai-compatible clients read them."""

from __future__ import annotations

import json
import re
import socket
import threading
from typing import Any

import httpx
import pytest

from inferd.v1 import inference_pb2 as pb

Events = list[dict[str, Any]]


def events_of(text: str) -> Events:
    """Every event but the last, which must be [DONE]."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(re.fullmatch(r"data: \{[^\n]*\}", block) for block in blocks[:-2])
    return [json.loads(block[6:]) for block in blocks[:-2]]


def streamed(response: httpx.Response) -> Events:
    assert response.status_code == 200, response.text
    return events_of(response.text)


def chat_text(events: Events, index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def completion_text(events: Events, index: int = 0) -> str:
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


def finishes(events: Events) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        found.setdefault(choice["index"], []).extend(filter(None, [choice["finish_reason"]]))
    return found


def test_headers_of_a_stream(gateway):
    headers = gateway.chat(stream=True).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers


def test_streams_whatever_is_accepted(gateway):
    body = {"model": "toy", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    response = gateway.post("/v1/chat/completions", body, headers={"accept": "application/json"})
    assert response.headers["content-type"].startswith("text/event-stream")


def test_shape_of_chat_chunks(gateway):
    events = streamed(gateway.chat(stream=True))
    first, *_, last = (event["choices"][0] for event in events)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in event["choices"][0]["delta"] for event in events[1:])
    assert last["delta"] == {}
    assert last["finish_reason"] == "stop"
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    for name in ("id", "created", "model", "system_fingerprint"):
        assert len({event[name] for event in events}) == 1
    assert events[0]["id"].startswith("chatcmpl-")
    assert type(events[0]["created"]) is int
    assert isinstance(events[0]["system_fingerprint"], str)
    assert events[0]["model"] == "toy"
    assert not any("usage" in event for event in events)


def test_shape_of_completion_chunks(gateway):
    events = streamed(gateway.complete(stream=True))
    assert {event["object"] for event in events} == {"text_completion"}
    assert all(isinstance(event["choices"][0]["text"], str) for event in events)
    assert events[0]["id"].startswith("cmpl-")


def test_choices_interleave_and_each_finishes_once(gateway):
    events = streamed(gateway.chat(stream=True, n=3))
    order = [event["choices"][0]["index"] for event in events]
    assert order != sorted(order)
    assert finishes(events) == {0: ["stop"], 1: ["stop"], 2: ["stop"]}


@pytest.mark.parametrize("stop", [None, [], "wör", ["日本", "nothing"], "🙂 d"])
def test_stream_and_whole_are_the_same_text(gateway, stop):
    events = streamed(gateway.chat(stream=True, stop=stop))
    whole = gateway.chat(stop=stop).json()["choices"][0]
    assert chat_text(events) == whole["message"]["content"]
    assert finishes(events)[0] == [whole["finish_reason"]]
    for text in [stop] if isinstance(stop, str) else stop or []:
        assert text not in chat_text(events)
    events = streamed(gateway.complete(stream=True, stop=stop, n=2))
    whole = gateway.complete(stop=stop, n=2).json()["choices"]
    assert [completion_text(events, index) for index in (0, 1)] == [choice["text"] for choice in whole]


def test_usage_in_one_extra_chunk(gateway):
    without = streamed(gateway.chat(stream=True))
    events = streamed(gateway.chat(stream=True, stream_options={"include_usage": True}))
    assert len(events) == len(without) + 1
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == gateway.chat().json()["usage"]
    assert events[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


def test_usage_when_the_length_ends_it(gateway):
    events = streamed(gateway.complete(stream=True, max_tokens=2, stream_options={"include_usage": True}))
    assert finishes(events) == {0: ["length"]}
    assert events[-1]["usage"]["completion_tokens"] == 2


def test_usage_sums_over_prompts(gateway):
    body = {"prompt": ["a", "bb"], "n": 2}
    events = streamed(gateway.complete(**body, stream=True, stream_options={"include_usage": True}))
    whole = gateway.complete(**body).json()
    assert events[-1]["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("path", ["chat", "complete"])
def test_continuous_usage(gateway, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = streamed(getattr(gateway, path)(stream=True, stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    # The first chunk of a chat has a role and no token yet.
    assert counts[:2] == ([0, 1] if path == "chat" else [1, 2])


def test_stream_options_need_a_stream(gateway):
    response = gateway.chat(stream_options={"include_usage": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream_options")


def test_errors_before_the_first_token_are_statuses(gateway):
    response = gateway.chat(stream=True, temperature=9)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "temperature")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["chat", "complete"])
def test_error_in_mid_stream(gateway, daemon, path):
    daemon.break_after = 3
    response = getattr(gateway, path)(stream=True)
    last = response.text.split("\n\n")[-2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "generation_failed"
    assert "[DONE]" not in response.text


def test_aborted_by_the_server(gateway, daemon):
    daemon.abort_reason = pb.FINISH_REASON_ABORTED
    assert '"code": "aborted"' in gateway.chat(stream=True).text.replace('":"', '": "')
    assert gateway.chat().status_code == 503


def test_the_connection_is_kept_for_the_next_request(gateway):
    with httpx.Client(base_url=gateway.url) as client:
        body = {"model": "toy", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        ports = set()
        for _ in range(3):
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.read()
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(ports) == 1


def test_comments_while_queued(start_gateway, daemon):
    gateway = start_gateway(sse_keepalive=0.05)
    daemon.gate = threading.Semaphore(0)
    body = {"model": "toy", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body, timeout=30) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == [": ping", "", ": ping", ""]
        daemon.gate.release(100)
        text = "\n".join(line for line in lines if not line.startswith(":"))
    assert "data: [DONE]" in text


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        data += connection.recv(65536)
    return data


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_stops_its_generation(gateway, daemon, stream):
    daemon.gate = threading.Semaphore(0)
    body = json.dumps({"model": "toy", "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}"
    connection = socket.create_connection(("127.0.0.1", gateway.port))
    connection.sendall(f"{head}\r\n\r\n{body}".encode())
    if stream:
        daemon.gate.release(2)
        read_until(connection, b'"content":"e"')
    else:
        while not daemon.requests:
            daemon.ended.wait(0.005)
    connection.close()
    assert daemon.ended.wait(5)
    assert daemon.steps <= 3


def test_metrics_count_tokens_and_streams(gateway, eventually):
    streamed(gateway.chat(stream=True))
    eventually(lambda: "inferd_gateway_open_streams 0.0" in gateway.get("/metrics").text)
    wanted = 'inferd_gateway_requests_total{route="/v1/chat/completions",status="200"}'
    eventually(lambda: wanted in gateway.get("/metrics").text)
    text = gateway.get("/metrics").text
    assert 'inferd_gateway_generated_tokens_total{model_name="org/toy"}' in text
    assert 'inferd_gateway_time_to_first_token_seconds_count{model_name="org/toy"}' in text
