"""Who may join: the right key, the same environment; and a second node as a process, with an engine that comes back."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from inferd.cli.cluster import cluster_parser, ray_arguments
from inferd.config import EngineConfig, ModelConfig, ParallelConfig
from inferd.errors import StartupError
from inferd.executor import node, rank_listener, rank_processes, ray_launcher
from inferd.executor.factory import create_executor
from inferd.executor.group_start import check_environments
from inferd.executor.nodes import NodesLauncher
from inferd.executor.rank_listener import Guest, RankListener
from inferd.executor.rank_processes import RankProcesses
from inferd.executor.ray_launcher import RayLauncher
from inferd.executor.wire import (
    HANDSHAKE_BYTES,
    Challenge,
    Environment,
    JoinNode,
    JoinRank,
    Refused,
    Welcome,
    encode,
    proof,
    receive,
)
from inferd.messages import HEADER
from inferd.parallel import context
from inferd.testing.product import free_port

ROOT = Path(__file__).resolve().parents[2]
HERE = Environment("1", "3.11", "2.13", "abc")


@pytest.fixture
def listener() -> Iterator[RankListener]:
    listener = RankListener("127.0.0.1", 0, 0.5, "secret")
    yield listener
    listener.close()


@pytest.fixture
def accepted(listener: RankListener) -> Iterator[Callable[[], Guest]]:
    """The next that comes in; the listener is at work from the start."""
    guests: Queue[Guest] = Queue()
    sockets: list[socket.socket] = []
    stopping = threading.Event()

    def listen() -> None:
        while not stopping.is_set():
            if (guest := listener.accept()) is not None:
                sockets.append(guest.sock)
                guests.put(guest)

    thread = threading.Thread(target=listen)
    thread.start()
    yield lambda: guests.get(timeout=20.0)
    stopping.set()
    thread.join()
    for sock in sockets:
        sock.close()


def connect(listener: RankListener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), 5.0)


def join(sock: socket.socket, rank: int, key: str = "secret") -> None:
    nonce = receive(sock, Challenge).nonce
    sock.sendall(encode(JoinRank(rank, proof(key, nonce, f"rank {rank}"))))


def test_a_rank_with_the_key_comes_in(listener: RankListener, accepted: Callable[[], Guest]) -> None:
    with connect(listener) as sock:
        join(sock, 3)
        guest = accepted()
        assert (guest.message.rank, guest.host) == (3, "127.0.0.1")  # type: ignore[union-attr]
        guest.sock.sendall(b"x")
        assert sock.recv(1) == b"x"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode(JoinRank(0, b"guess")),
        b"",
        HEADER.pack(HANDSHAKE_BYTES + 1),  # no more is waited for
    ],
)
def test_others_stay_out(listener: RankListener, accepted: Callable[[], Guest], said: bytes) -> None:
    with connect(listener) as stranger, connect(listener) as sock:
        stranger.sendall(said)
        if not said:
            stranger.shutdown(socket.SHUT_WR)
        receive(stranger, Challenge)
        with suppress(ConnectionResetError):  # what was said was not read to its end
            assert stranger.recv(1) == b""
        join(sock, 1)
        assert isinstance(accepted().message, JoinRank)


def test_those_that_trickle_hold_nobody_up(
    listener: RankListener, accepted: Callable[[], Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do more of them than there is room for."""
    monkeypatch.setattr(rank_listener, "HANDSHAKE_TIMEOUT_S", 600.0)
    monkeypatch.setattr(rank_listener, "MAX_HANDSHAKES", 3)
    frame = encode(JoinRank(0, b"?" * 32))
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(listener)) for _ in range(5)]
        for sock in slow[:2]:  # two more came after them
            receive(sock, Challenge)
            assert sock.recv(1) == b""
        for sock in slow[2:]:
            sock.sendall(frame[:3])
        prompt = stack.enter_context(connect(listener))
        join(prompt, 7)
        assert accepted().message.rank == 7  # type: ignore[union-attr]


def test_proof_is_due_in_time(listener: RankListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_listener, "HANDSHAKE_TIMEOUT_S", 0.1)
    with connect(listener) as sock:
        assert listener.accept() is None
        receive(sock, Challenge)
        assert sock.recv(1) == b""


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:0 for other ranks"):
        RankListener("192.0.2.1", 0, 1.0, "secret")


def test_nobody_is_let_in_from_other_machines_without_a_key() -> None:
    with pytest.raises(StartupError, match=r"INFERD_CLUSTER_KEY is not set, and others reach 0\.0\.0\.0"):
        RankListener("0.0.0.0", 0, 1.0, "")
    for host, key in (("127.0.0.1", ""), ("localhost", ""), ("0.0.0.0", "secret")):
        RankListener(host, 0, 1.0, key).close()


def test_an_interface_is_found_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = tmp_path / "if_inet6"
    addresses.write_text("20010db8000000000000000000000007 03 40 00 80     eth7\n" + f"{1:032x} 01 80 10 80       lo\n")
    monkeypatch.setattr(context, "IPV6_ADDRESSES", addresses)
    found = [
        context.interface_of(host) for host in ("127.0.0.1", "::1", "2001:db8::7%eth7", "192.0.2.77", "2001:db8::8")
    ]
    assert found == ["lo", "lo", "eth7", None, None]


def test_every_difference_is_named() -> None:
    other = msgspec.structs.replace(HERE, torch="2.12", checkpoint="abd")
    with pytest.raises(
        StartupError, match=r"rank 2 runs in another .*: torch 2\.12, not 2\.13; checkpoint abd, not abc"
    ):
        check_environments(HERE, {0: HERE, 2: other})
    check_environments(HERE, {0: HERE, 1: HERE})


@pytest.mark.parametrize(
    ("number", "environment", "answer"),
    [
        (1, HERE, Welcome([2, 3])),
        (2, HERE, Refused("--node-rank 2 of --nnodes 2: 1 to 1 may join")),
        (1, Environment("1", "3.11", "2.13", "xyz"), Refused("node 1 is not like node 0: checkpoint xyz, not abc")),
    ],
)
def test_a_node_is_welcomed_or_told_why_not(number: int, environment: Environment, answer: Welcome | Refused) -> None:
    launcher = NodesLauncher(ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2, nnodes=2), HERE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    launcher._receive(Guest(ours, JoinNode(number, environment, b""), "127.0.0.1"))
    with theirs:
        assert receive(theirs, Welcome | Refused) == answer
    launcher.kill()


def test_a_node_that_has_left_again_does_not_end_node_0() -> None:
    launcher = NodesLauncher(ParallelConfig(tensor_parallel_size=2, nnodes=2), HERE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    theirs.close()
    launcher._receive(Guest(ours, JoinNode(1, HERE, b""), "127.0.0.1"))
    launcher.kill()


def test_a_node_outlives_a_node_0_that_leaves_in_the_middle(
    engine_config: Callable[..., EngineConfig],
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It closes at once, after half a challenge, after the challenge, after half a welcome; then it refuses."""
    challenge = encode(Challenge(b"n" * 16))
    said = [b"", challenge[:7], challenge, challenge + encode(Welcome([1]))[:6]]
    monkeypatch.setattr(node, "RETRY_S", 0.01)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def play(server: socket.socket) -> None:
        for part in said:
            sock, _ = server.accept()
            with sock:
                sock.sendall(part)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 12):  # until it has left
                    pass
        sock, _ = server.accept()
        with sock:
            sock.sendall(challenge + encode(Refused("enough")))
            while sock.recv(1 << 12):
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=play, args=(server,))
        thread.start()
        config = engine_config(
            tiny_model("llama"), 2, nnodes=2, node_rank=1, master_addr="127.0.0.1", master_port=server.getsockname()[1]
        )
        with pytest.raises(StartupError, match="enough"):
            node.run_node(config)
        thread.join()


def test_a_node_with_another_key_is_told(
    listener: RankListener, accepted: Callable[[], Guest], engine_config: Callable[..., EngineConfig],
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("INFERD_CLUSTER_KEY", "another")
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    parallel = {"nnodes": 2, "node_rank": 1, "master_addr": "127.0.0.1", "master_port": listener.port}
    with pytest.raises(StartupError, match="INFERD_CLUSTER_KEY is not that of node 0"):
        node.run_node(engine_config(tiny_model("llama"), 2, **parallel))


def test_a_node_comes_again_when_one_of_its_ranks_ends(
    engine_config: Callable[..., EngineConfig], tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 0 would wait for that rank for ever."""
    monkeypatch.setattr(node, "WATCH_S", 0.01)
    monkeypatch.setattr(rank_processes, "COMMAND", ("false",))
    config = engine_config(tiny_model("llama"), 2, nnodes=2, node_rank=1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(encode(Challenge(b"n" * 16)) + encode(Welcome([1])))
        node.Node(config, HERE).serve(ours)


def test_the_clusters_key_does_not_go_through_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Ray: what it is told, with what an actor says to its worker. Not run on a cluster."""
    monkeypatch.setenv("INFERD_CLUSTER_KEY", "the secret of the cluster")
    cluster = StandInCluster()
    monkeypatch.setattr(ray_launcher, "_connect_to_cluster", lambda: cluster)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setitem(
        sys.modules,
        "ray.util.scheduling_strategies",
        SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group, placement_group_bundle_index: None),
    )
    config = EngineConfig(
        model=ModelConfig(source="m", path="m"), parallel=ParallelConfig(tensor_parallel_size=2, backend="ray")
    )
    seats = RayLauncher(config).start(lambda phase, fraction: None)
    assert len(seats) == 2
    for seat in seats:
        seat.sock.close()
    for sock in cluster.workers:
        sock.close()
    assert "the secret of the cluster" not in repr(cluster.told)
    assert "INFERD_CLUSTER_KEY" not in repr(cluster.told)


class StandInCluster:
    """As much of the module ray as the launcher uses; actors run here and connect as their workers would."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.workers: list[socket.socket] = []
        self.util = SimpleNamespace(
            placement_group=lambda bundles, strategy: SimpleNamespace(wait=lambda seconds: True),
            get_node_ip_address=lambda: "127.0.0.1",
        )

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def get(self, values: list[Any]) -> list[Any]:
        return values

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.told.append(options)
        return lambda kind: SimpleNamespace(options=lambda **where: SimpleNamespace(remote=self._actor))

    def _actor(self) -> Any:
        return SimpleNamespace(node=SimpleNamespace(remote=lambda: "n"), start=SimpleNamespace(remote=self._start))

    def _start(self, rank: int, address: str, key: str) -> None:
        self.told.append((rank, address, key))
        host, _, port = address.partition(":")
        sock = socket.create_connection((host, int(port)))
        self.workers.append(sock)
        threading.Thread(target=join, args=(sock, rank, key)).start()


def test_a_worker_gets_the_key_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_CLUSTER_KEY", "an older one")
    said = tmp_path / "said"
    monkeypatch.setattr(rank_processes, "COMMAND", ("sh", "-c", f'printf %s "$INFERD_CLUSTER_KEY" >{said}'))
    processes = RankProcesses()
    processes.start_remote(0, "127.0.0.1:1", "of this start")
    processes._processes[0].wait(20.0)
    processes.kill()
    assert said.read_text() == "of this start"


def test_two_nodes_answer_like_one_process(
    engine_config: Callable[..., EngineConfig],
    tiny_model: Callable[[str], Path],
    ask: Callable[..., Any],
    same: Callable[[Any, Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second node outlives the first engine and joins the next one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels")))
    path = tiny_model("llama")
    expected, _ = ask(create_executor(engine_config(path), lambda phase, fraction: None), engine_config(path), 5, 6)
    port = free_port()
    config = engine_config(path, 1, 2, nnodes=2, master_port=port)
    code = (
        "import sys, msgspec; from inferd.config import EngineConfig; from inferd.executor.node import run_node;"
        "sys.exit(run_node(msgspec.json.decode(sys.argv[1], type=EngineConfig)))"
    )
    node_config = msgspec.structs.replace(config, parallel=msgspec.structs.replace(config.parallel, node_rank=1))
    with subprocess.Popen([sys.executable, "-c", code, msgspec.json.encode(node_config).decode()]) as process:
        for _ in range(2):
            executor = create_executor(config, lambda phase, fraction: None)
            answers, _ = ask(executor, config, 5, 6)
            executor.shutdown()
            same(answers, expected)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["start", "--head"], "start --disable-usage-stats --head --port=6379 --include-dashboard=false"),
        (["start", "--address", "10.0.0.1"], "start --disable-usage-stats --address=10.0.0.1:6379"),
        (
            ["start", "--address", "10.0.0.1:7000", "--node-ip-address", "10.0.0.2", "--num-cpus", "2", "--block"],
            "start --disable-usage-stats --address=10.0.0.1:7000 --node-ip-address=10.0.0.2 --num-cpus=2 --block",
        ),
        (["stop"], "stop"),
    ],
)
def test_cluster_commands_are_those_of_ray(words: list[str], expected: str) -> None:
    assert ray_arguments(cluster_parser().parse_args(words)) == expected.split()
