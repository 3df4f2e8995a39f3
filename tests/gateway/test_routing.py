"""Several daemons behind one gateway: by model, by load, by prefix; and one that dies is replaced by another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from inferd_gateway.backend import Backend
from inferd_gateway.directory import ModelDirectory
from inferd_gateway.routing import PREFIX_CHARS, affinity_key, choose
from inferd_gateway.schemas.chat import Message
from inferd_gateway.settings import Settings
from inferd_gateway.templates.renderer import Renderer

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import free_port
from inferd.v1 import admin_pb2, admin_pb2_grpc, model_pb2

LONG = "You are a helpful assistant. " * 20


@dataclass
class FakeBackend:
    target: str
    open_streams: int = 0
    reported_load: int | None = None
    times_chosen: int = 0
    serving: bool | None = True


@dataclass
class FakeModel:
    backend: FakeBackend = field(default_factory=lambda: FakeBackend(""))


def daemons(count: int) -> list[Any]:
    return [FakeModel(FakeBackend(f"10.0.0.{number}:50051")) for number in range(count)]


def keys(count: int) -> list[bytes]:
    found = [affinity_key({}, {}, f"{number} {LONG}") for number in range(count)]
    assert all(found)
    return [key for key in found if key is not None]


def test_a_prefix_has_a_home_and_a_lost_daemon_moves_only_its_own() -> None:
    models = daemons(4)
    homes = {key: choose(models, key).backend.target for key in keys(400)}
    assert {key: choose(models, key).backend.target for key in homes} == homes
    assert min(Counter(homes.values()).values()) > 50
    lost = models[2].backend
    lost.serving = False
    moved = {key for key, home in homes.items() if choose(models, key).backend.target != home}
    assert moved == {key for key, home in homes.items() if home == lost.target}


def test_the_imbalance_of_one_popular_prefix_is_bounded() -> None:
    models = daemons(4)
    key = keys(1)[0]
    for _ in range(400):
        choose(models, key).backend.open_streams += 1
    loads = sorted(model.backend.open_streams for model in models)
    assert sum(loads) == 400
    assert loads[-1] <= 1.25 * 401 / 4 + 6


def test_reported_loads_count_only_if_all_report() -> None:
    models = daemons(3)
    for model, streams, load in zip(models, (0, 5, 9), (8, 6, 2), strict=True):
        model.backend.open_streams, model.backend.reported_load = streams, load
    assert choose(models, None) is models[2]
    models[1].backend.reported_load = None
    assert choose(models, None) is models[0]
    models[1].backend.serving = False
    assert choose(models, None) is models[2]


def test_a_prefix_leaves_a_daemon_that_others_keep_busy() -> None:
    models = daemons(2)
    key = keys(1)[0]
    home = choose(models, key)
    other = models[1 - models.index(home)]
    home.backend.reported_load, other.backend.reported_load = 100, 0
    assert choose(models, key) is other
    home.backend.reported_load = 3
    assert choose(models, key) is home


def test_what_makes_a_key() -> None:
    assert affinity_key({}, {}, "short") is None
    assert affinity_key({}, {}, LONG) == affinity_key({}, {}, LONG + "and more")
    assert affinity_key({}, {}, LONG) != affinity_key({}, {}, "x" + LONG)
    assert affinity_key({"x-session-id": "s"}, {}, "a") == affinity_key({"x-session-id": "s"}, {}, LONG)
    assert affinity_key({}, {"prompt_cache_key": "s"}, "a") == affinity_key({}, {"session_id": "s"}, "b")
    ids = list(range(PREFIX_CHARS))
    assert affinity_key({}, {}, ids) == affinity_key({}, {}, [*ids, 1]) != affinity_key({}, {}, ids[::-1])
    system, one, two = (
        Message(role=role, content=text) for role, text in (("system", LONG), ("user", "one"), ("user", "two"))
    )
    answer = Message(role="assistant", content="1")
    first = affinity_key({}, {}, [system, one])
    assert first == affinity_key({}, {}, [system, one, answer, two]) != affinity_key({}, {}, [system, two])


def test_nobody_serves_but_somebody_is_asked() -> None:
    models = daemons(2)
    for model in models:
        model.backend.serving = False
    assert choose(models, None) in models
    assert choose(models, keys(1)[0]) in models


def test_models_of_several_daemons_are_merged_and_routed_by_name(start_gateway, new_daemon):
    one, two = new_daemon(), new_daemon()
    two.servicer._card = lambda: model_pb2.ModelCard(name="org/other", aliases=["other"], created_unix=1)
    gateway = start_gateway(backend=(one.address, two.address), model_alias=("gpt-4o=toy", "lost=nobody"))
    listed = {model["id"] for model in gateway.get("/v1/models").json()["data"]}
    assert listed == {"org/toy", "toy", "org/other", "other", "gpt-4o"}
    for name, daemon in (("toy", one), ("other", two), ("org/other", two), ("gpt-4o", one)):
        before = len(daemon.servicer.requests)
        response = gateway.post("/v1/completions", {"model": name, "prompt": "x"})
        assert response.json()["model"] == name
        assert len(daemon.servicer.requests) == before + 1
    assert gateway.post("/v1/completions", {"model": "lost", "prompt": "x"}).status_code == 404
    # Two models, and none is named.
    assert gateway.post("/v1/completions", {"prompt": "x"}).json()["error"]["param"] == "model"


def test_one_prefix_meets_one_daemon(start_gateway, new_daemon):
    running = [new_daemon() for _ in range(3)]
    gateway = start_gateway(backend=tuple(daemon.address for daemon in running))
    gateway.get("/v1/models")
    for number in range(6):
        assert gateway.complete(f"{LONG} and then {number}").status_code == 200
    assert sorted(len(daemon.servicer.requests) for daemon in running) == [0, 0, 6]
    for _ in range(3):
        assert gateway.chat("hi", prompt_cache_key="my session").status_code == 200
    assert sorted(len(daemon.servicer.requests) for daemon in running) in ([0, 0, 9], [0, 3, 6])


def test_a_trace_reaches_the_daemon(gateway, daemon):
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}
    gateway.post("/v1/completions", {"prompt": "x"}, headers=trace)
    assert {name: daemon.metadata[-1].get(name) for name in trace} == trace


def stream_text(url: str) -> str:
    body = {"model": "fake", "prompt": "hello", "seed": 14, "max_tokens": 120, "stream": True, "temperature": 1}
    found = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60, trust_env=False) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                found.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
    return "".join(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_dies_is_replaced_by_another(start_gateway, number):
    """Real daemons, streams on both; the one that dies is chosen by its load, not by luck."""
    core = {"behaviour": {"step_s": 0.02}}
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                DaemonProcess(fake_config(server={"port": port, "drain_timeout_s": 0.0}), core)
            ).wait_ready()
            for port in ports
        ]
        gateway = start_gateway(backend=tuple(f"127.0.0.1:{port}" for port in ports))
        while len(gateway.get("/v1/models").json()["data"]) < 2:
            pass
        expected = stream_text(gateway.url)
        texts: list[str] = []
        threads = [threading.Thread(target=lambda: texts.append(stream_text(gateway.url))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for daemon in running:
            while not daemon.metrics()["inferd_requests_running"] >= 2:
                pass
        running[0].signal(number)
        for thread in threads:
            thread.join(60)
        assert texts == [expected] * 6
        assert gateway.get("/health").status_code == 200


def test_a_daemon_that_drains_gets_nothing_though_it_lists_its_models(start_gateway):
    with contextlib.ExitStack() as stack:
        config = fake_config(server={"admin_listen": "127.0.0.1:0"})
        running = [stack.enter_context(DaemonProcess(config)).wait_ready() for _ in range(2)]
        gateway = start_gateway(backend=tuple(daemon.address for daemon in running))
        backends = gateway.app.state.gateway.directory.backends
        while not all(backend.serving for backend in backends):
            pass
        channel = stack.enter_context(grpc.insecure_channel(running[0].admin))
        reports = admin_pb2_grpc.AdminServiceStub(channel).Drain(admin_pb2.DrainRequest())
        assert list(reports)[-1].idle
        while backends[0].serving:
            pass
        # An unknown name makes the gateway ask every daemon for its models.
        assert gateway.post("/v1/completions", {"model": "unknown", "prompt": "x"}).status_code == 404
        chosen = backends[0].times_chosen
        statuses = [gateway.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code for _ in range(8)]
        assert statuses == [200] * 8
        assert backends[0].times_chosen == chosen  # a refusal is retried elsewhere, so the answers do not tell


def test_a_list_of_models_says_nothing_of_health(new_daemon):
    """Only Watch does: before it has spoken nothing is known, and what it said stays."""
    address = new_daemon().address

    async def run() -> None:
        backend, renderer = Backend(address, None), Renderer()
        directory = ModelDirectory([backend], Settings(backend=(address,)), None, renderer)
        try:
            for known in (None, False, True):
                backend.serving = known
                await directory.refresh()
                assert backend.serving is known
                assert directory.all()
        finally:
            await renderer.close()
            await backend.close()

    asyncio.run(run())
