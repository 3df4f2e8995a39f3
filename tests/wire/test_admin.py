"""AdminService over its own listener: abort, drain, clear, watch, dump."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import Choice, collect, decode_failure, fails, make_generate
from inferd.v1 import admin_pb2, inference_pb2
from inferd.v1.admin_pb2_grpc import AdminServiceStub
from inferd.v1.inference_pb2_grpc import InferenceServiceStub

CORE = {"behaviour": {"step_s": 0.01}}


class Served:
    """A daemon with an admin listener, and stubs of both."""

    def __init__(self, daemon: DaemonProcess, channel: grpc.Channel, admin: grpc.Channel) -> None:
        self.daemon = daemon
        self.channel = channel
        self.inference = InferenceServiceStub(channel)
        self.admin = AdminServiceStub(admin)


@contextmanager
def served(core: dict[str, Any] | None = None, **server: Any) -> Iterator[Served]:
    config = fake_config(server={"admin_listen": "127.0.0.1:0", **server})
    with DaemonProcess(config, core or CORE) as daemon:
        daemon.wait_ready()
        assert daemon.admin is not None
        with grpc.insecure_channel(daemon.address) as channel, grpc.insecure_channel(daemon.admin) as admin:
            yield Served(daemon, channel, admin)


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with served() as found:
        yield found


class Running:
    """A generation that is read on a thread."""

    def __init__(self, stub: InferenceServiceStub, request_id: str, max_tokens: int = 2000) -> None:
        self.choices: dict[int, Choice] = {}
        self.failure: Any = None
        self.started = threading.Event()
        request = make_generate(max_tokens=max_tokens, request_id=request_id)
        self._call = stub.Generate(request)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert self.started.wait(10)

    def _read(self) -> None:
        messages: list[inference_pb2.GenerateResponse] = []
        try:
            for message in self._call:
                messages.append(message)
                self.started.set()
            self.choices = collect(messages)
        except grpc.RpcError as error:
            self.failure = decode_failure(error)
            self.started.set()

    def join(self) -> Running:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self


def test_abort_by_id(shared: Served) -> None:
    first, second = (Running(shared.inference, name) for name in ("abort-1", "abort-2"))
    reply = shared.admin.AbortRequests(
        admin_pb2.AbortRequestsRequest(request_ids=["abort-1", "nobody"], reason="a test")
    )
    assert (list(reply.aborted), list(reply.not_found)) == (["abort-1"], ["nobody"])
    choice = first.join().choices[0]
    assert choice.finish is not None
    assert choice.finish.reason == inference_pb2.FINISH_REASON_ABORTED
    assert choice.finish.completion_tokens == len(choice.token_ids) > 0
    reply = shared.admin.AbortRequests(admin_pb2.AbortRequestsRequest(all=True))
    assert list(reply.aborted) == ["abort-2"]
    assert second.join().choices
    shared.daemon.wait_metrics(requests_running=0)


@pytest.mark.parametrize("fields", [{}, {"request_ids": ["a"], "all": True}, {"all": True, "reason": "x" * 257}])
def test_nonsense_aborts_nothing(shared: Served, fields: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        shared.admin.AbortRequests(admin_pb2.AbortRequestsRequest(**fields))
    assert decode_failure(raised.value).code == "INVALID_ARGUMENT"


PROMPTS = [{"text": f"{number} " * 40} for number in range(8)]
LABELS = {"prompts": PROMPTS, "label_token_ids": [1, 2]}
BATCHES: dict[str, Any] = {
    "embed": inference_pb2.EmbedRequest(inputs=PROMPTS),
    "pairs": inference_pb2.ScoreRequest(rerank={"query": PROMPTS[0], "documents": PROMPTS}),
    "continuations": inference_pb2.ScoreRequest(
        continuations={"items": [{"context": prompt, "continuation": {"text": "!"}} for prompt in PROMPTS]}
    ),
    "labels": inference_pb2.ScoreRequest(labels=LABELS),
}


@pytest.fixture(scope="module")
def pooling() -> Iterator[Served]:
    """Slow enough that a batch is still running when it is aborted."""
    config = fake_config(pooling="mean", server={"admin_listen": "127.0.0.1:0"}, scheduler={"max_num_seqs": 1})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.5}}) as daemon:
        daemon.wait_ready()
        assert daemon.admin is not None
        with grpc.insecure_channel(daemon.address) as channel, grpc.insecure_channel(daemon.admin) as admin:
            yield Served(daemon, channel, admin)


@pytest.mark.parametrize("kind", BATCHES)
def test_an_aborted_batch_has_no_part(pooling: Served, kind: str) -> None:
    """There is no half of a vector or a score: the whole ends as aborted."""
    method = pooling.inference.Embed if kind == "embed" else pooling.inference.Score
    call = method.future(BATCHES[kind], timeout=30)
    aborted: list[str] = []
    while not aborted:
        assert not call.done()
        aborted = list(pooling.admin.AbortRequests(admin_pb2.AbortRequestsRequest(all=True)).aborted)
    with pytest.raises(grpc.RpcError) as raised:
        call.result()
    failure = decode_failure(raised.value)
    assert (failure.code, failure.reason) == ("ABORTED", "ADMIN_ABORT")
    pooling.daemon.wait_metrics(requests_running=0)
    assert not any("Traceback" in line for line in pooling.daemon.lines)


def readiness(channel: grpc.Channel) -> int:
    request = health_pb2.HealthCheckRequest(service="inferd.v1.InferenceService")
    status: int = health_pb2_grpc.HealthStub(channel).Check(request).status
    return status


def test_drain_reports_refuses_and_ends(shared: Served) -> None:
    running = Running(shared.inference, "drained", max_tokens=150)
    reports = shared.admin.Drain(admin_pb2.DrainRequest(reason="maintenance"))
    first = next(reports)
    assert (first.running, first.waiting, first.idle) == (1, 0, False)
    refused = fails(shared.inference.Generate(make_generate()))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "DRAINING")
    assert "maintenance" in refused.message
    assert readiness(shared.channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert list(reports)[-1] == admin_pb2.DrainResponse(idle=True)
    assert len(running.join().choices[0].token_ids) == 150

    shared.admin.Undrain(admin_pb2.UndrainRequest())
    assert readiness(shared.channel) == health_pb2.HealthCheckResponse.SERVING
    assert collect(shared.inference.Generate(make_generate()))


def test_a_drain_with_a_limit_aborts(shared: Served) -> None:
    running = Running(shared.inference, "limited")
    reports = list(shared.admin.Drain(admin_pb2.DrainRequest(abort_after={"nanos": 100_000_000})))
    assert reports[-1].idle
    finish = running.join().choices[0].finish
    assert finish is not None
    assert finish.reason == inference_pb2.FINISH_REASON_ABORTED
    shared.admin.Undrain(admin_pb2.UndrainRequest())


def test_the_prefix_cache_can_be_cleared(shared: Served) -> None:
    prompt = "p" * 200
    for salt in ("", "tenant"):
        collect(shared.inference.Generate(make_generate(prompt, max_tokens=1, cache={"salt": salt})))
    assert shared.admin.ClearPrefixCache(admin_pb2.ClearPrefixCacheRequest(salt="tenant")).blocks_freed >= 12
    assert shared.admin.ClearPrefixCache(admin_pb2.ClearPrefixCacheRequest(salt="tenant")).blocks_freed == 0
    assert shared.admin.ClearPrefixCache(admin_pb2.ClearPrefixCacheRequest()).blocks_freed >= 12
    usage = list(shared.inference.Generate(make_generate(prompt, max_tokens=1)))[-1].usage
    assert usage.cached_prompt_tokens == 0


def test_the_load_once_and_as_it_changes(shared: Served) -> None:
    once = list(shared.admin.WatchLoad(admin_pb2.WatchLoadRequest(once=True)))
    assert [report.sequence for report in once] == [1]
    assert once[0].kv_blocks_total > 0

    watch = shared.admin.WatchLoad(admin_pb2.WatchLoadRequest(interval={"nanos": 50_000_000}))
    assert next(watch).running == 0
    running = Running(shared.inference, "watched", max_tokens=300)
    seen = []
    for report in watch:
        seen.append(report)
        if report.running == 0:
            break
    watch.cancel()
    running.join()
    assert max(report.running for report in seen) == 1
    assert max(report.tokens_per_second for report in seen) > 10
    assert max(report.kv_blocks_used for report in seen) > 0
    assert [report.sequence for report in seen] == list(range(2, len(seen) + 2))
    assert all(report.idle_ms < 5000 for report in seen)
    assert 0 <= seen[-1].prefix_hit_rate < 1


def test_a_load_that_does_not_change_is_told_again_when_asked(shared: Served) -> None:
    watch = shared.admin.WatchLoad(admin_pb2.WatchLoadRequest(heartbeat={"nanos": 50_000_000}), timeout=20)
    reports = [next(watch) for _ in range(4)]
    watch.cancel()
    assert [report.sequence for report in reports] == [1, 2, 3, 4]
    assert len({(report.running, report.waiting, report.kv_blocks_total) for report in reports[1:]}) == 1
    failure = fails(shared.admin.WatchLoad(admin_pb2.WatchLoadRequest(heartbeat={})))
    assert (failure.reason, failure.fields) == ("INVALID_PARAMETER", ("heartbeat",))


def dump(admin: AdminServiceStub, **fields: Any) -> dict[str, Any]:
    pieces: defaultdict[str, bytes] = defaultdict(bytes)
    for message in admin.DumpState(admin_pb2.DumpStateRequest(**fields)):
        assert len(message.json) <= 1 << 20
        pieces[message.section] += message.json
    return {name: json.loads(data) for name, data in pieces.items()}


def test_a_dump_has_both_sides_and_no_prompt_unless_asked(shared: Served) -> None:
    running = Running(shared.inference, "dumped")
    state = dump(shared.admin)
    assert {"server", "requests", "tasks", "scheduler", "sequences", "blocks", "threads"} == set(state)
    assert [request["request_id"] for request in state["requests"]] == ["dumped"]
    assert [sequence["request_id"] for sequence in state["sequences"]] == ["dumped"]
    assert state["server"]["serving"] is True
    assert any("front-reader" in name for name in state["threads"])
    assert "token_ids" not in json.dumps(state)

    told = dump(shared.admin, include_prompts=True, sections=["requests", "sequences"])
    assert set(told) == {"requests", "sequences"}
    assert told["requests"][0]["prompt_token_ids"] == list(b"hello")
    assert told["sequences"][0]["token_ids"][:5] == list(b"hello")
    shared.admin.AbortRequests(admin_pb2.AbortRequestsRequest(all=True))
    running.join()


def test_the_core_knows_whose_a_request_is() -> None:
    """A digest of the key and whom its holder names, on a stream of its own or among others; else nobody."""
    with served(api_keys=("secret", "other")) as found:
        calls = []
        for number, (key, metadata) in enumerate(
            (("secret", ()), ("secret", (("x-inferd-tenant", "ann"),)), ("other", ()))
        ):
            request = make_generate(max_tokens=2000, request_id=f"r{number}")
            calls.append(found.inference.Generate(request, metadata=[("authorization", f"Bearer {key}"), *metadata]))
            next(calls[-1])
        start = inference_pb2.MuxStart(request=make_generate(max_tokens=2000, request_id="r3"))
        start.metadata["x-inferd-tenant"] = "bob"
        start.metadata["authorization"] = "Bearer other"  # proves nothing here
        messages = iter([inference_pb2.GenerateMuxRequest(stream_id=1, start=start)])
        calls.append(found.inference.GenerateMux(messages, metadata=[("authorization", "Bearer secret")]))
        next(calls[-1])
        tenants = {each["request_id"]: each["tenant"] for each in dump(found.admin)["sequences"]}
        assert "secret" not in json.dumps(tenants)
        assert [tenants[f"r{number}"]["caller"] for number in range(4)] == ["", "ann", "", "bob"]
        keys = [tenants[f"r{number}"]["key"] for number in range(4)]
        assert len(keys[0]) == 32
        assert keys == [keys[0], keys[0], keys[2], keys[0]]
        assert keys[2] != keys[0]
        long = [("authorization", "Bearer secret"), ("x-inferd-tenant", "x" * 129)]
        failure = fails(found.inference.Generate(make_generate(), metadata=long))
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ("x-inferd-tenant",))
        for call in calls:
            call.cancel()


def test_without_keys_everybody_is_one(shared: Served) -> None:
    request = make_generate(max_tokens=2000, request_id="anonymous")
    call = shared.inference.Generate(request, metadata=[("authorization", "Bearer anything")])
    next(call)
    (sequence,) = dump(shared.admin)["sequences"]
    assert sequence["tenant"] == {"key": "", "caller": ""}
    call.cancel()


def test_an_unknown_section_is_refused(shared: Served) -> None:
    failure = fails(shared.admin.DumpState(admin_pb2.DumpStateRequest(sections=["secrets"])))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ("sections",))


def test_a_dump_while_the_core_is_stuck_in_a_step() -> None:
    with served({"behaviour": {"step_s": 3.0}}) as stuck:
        call = stuck.inference.Generate(make_generate(request_id="stuck", max_tokens=2))
        stuck.daemon.wait_metrics(requests_admitted_total=1)
        state = dump(stuck.admin)
        assert any("fake_executor" in line for stack in state["threads"].values() for line in stack)
        call.cancel()


def test_a_dump_while_the_core_is_away() -> None:
    core = {"behaviour": {"step_s": 0.01, "die_at_step": 3}, "load_s": 3.0}
    with served(core) as dying:
        stream = dying.inference.Generate(make_generate(max_tokens=50))
        next(stream)
        dying.daemon.wait_metrics(engine_restarts_total=1)
        state = dump(dying.admin, sections=["server", "requests"])
        assert state["server"]["serving"] is False
        assert len(state["requests"]) == 1
        stream.cancel()


def test_a_unix_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    for _ in range(2):  # a socket that a killed daemon left is no obstacle
        with served(admin_listen=f"unix:{path}") as found:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert list(found.admin.WatchLoad(admin_pb2.WatchLoadRequest(once=True)))


def test_the_data_port_has_no_admin_service(shared: Served) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        AdminServiceStub(shared.channel).Undrain(admin_pb2.UndrainRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_open_watch_and_an_idle_mux_do_not_hold_up_the_end() -> None:
    with served() as found:
        watch = found.admin.WatchLoad(admin_pb2.WatchLoadRequest())
        next(watch)
        mux = found.inference.GenerateMux(iter([]))
        waiting = threading.Event()
        held = found.inference.GenerateMux(iter(lambda: waiting.wait(30) and None, 0))
        assert list(mux) == []
        held.initial_metadata()
        started = time.monotonic()
        found.daemon.signal(signal.SIGTERM)
        assert found.daemon.wait() == 0
        assert time.monotonic() - started < 4
        waiting.set()
        held.cancel()
