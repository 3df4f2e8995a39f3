"""Who may join: the right key, the same environment; and a second node as a process, with an engine that comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferd.cli.cluster import cluster_parser, ray_arguments
from inferd.config import EngineConfig, ParallelConfig
from inferd.errors import StartupError
from inferd.executor.factory import create_executor
from inferd.executor.group_start import check_environments
from inferd.executor.nodes import NodesLauncher
from inferd.executor.rank_listener import Guest, RankListener
from inferd.executor.wire import (
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
from inferd.parallel import context
from inferd.testing.product import free_port

ROOT = Path(__file__).resolve().parents[2]
HERE = Environment("1", "3.11", "2.13", "abc")


@pytest.fixture
def listener() -> RankListener:
    return RankListener("127.0.0.1", 0, 5.0)


def connect(listener: RankListener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), 5.0)


def test_a_rank_with_the_key_comes_in(listener: RankListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_CLUSTER_KEY", "secret")
    with connect(listener) as sock:
        # The challenge comes with the acceptance; what is sent before it cannot be right.
        accepted: list[Any] = []
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
        thread.start()
        nonce = receive(sock, Challenge).nonce
        sock.sendall(encode(JoinRank(3, proof(nonce, "rank 3"))))
        thread.join()
        assert accepted[0].message.rank == 3
        accepted[0].sock.close()
    listener.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", encode(JoinRank(0, b"guess")), b""])
def test_others_stay_out(listener: RankListener, said: bytes) -> None:
    with connect(listener) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        assert listener.accept() is None
    listener.close()


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:0 for other ranks"):
        RankListener("192.0.2.1", 0, 1.0)


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
    ("node", "environment", "answer"),
    [
        (1, HERE, Welcome([2, 3])),
        (2, HERE, Refused("--node-rank 2 of --nnodes 2: 1 to 1 may join")),
        (1, Environment("1", "3.11", "2.13", "xyz"), Refused("node 1 is not like node 0: checkpoint xyz, not abc")),
    ],
)
def test_a_node_is_welcomed_or_told_why_not(node: int, environment: Environment, answer: Welcome | Refused) -> None:
    launcher = NodesLauncher(ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2, nnodes=2), HERE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    launcher._receive(Guest(ours, JoinNode(node, environment, b"")))
    with theirs:
        assert receive(theirs, Welcome | Refused) == answer
    launcher.kill()


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
    with subprocess.Popen([sys.executable, "-c", code, msgspec.json.encode(node_config).decode()]) as node:
        for _ in range(2):
            executor = create_executor(config, lambda phase, fraction: None)
            answers, _ = ask(executor, config, 5, 6)
            executor.shutdown()
            same(answers, expected)
        node.send_signal(signal.SIGTERM)
        assert node.wait(10) == 0


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
