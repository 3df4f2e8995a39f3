"""`inferd up`: how flags split over the two commands, and how two processes share one life."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inferd.cli.arguments import parse
from inferd.cli.example import example_call
from inferd.cli.main import COMMANDS
from inferd.cli.supervisor import Supervisor
from inferd.cli.up import Plan, banner, make_plan
from inferd.cli.values import UsageError
from inferd.v1 import model_pb2

FOREVER = "import signal; print('up', flush=True); signal.pause()"


def plan(*argv: str, **environment: str) -> Plan:
    return make_plan(parse(COMMANDS["up"], ["demo", *argv]), environment)


def test_flags_go_to_the_process_they_are_for() -> None:
    made = plan(
        *(
            "--port",
            "8100",
            "--grpc-port",
            "6000",
            "--max-num-seqs",
            "4",
            "--no-enable-prefix-caching",
            "--strict-params",
        ),
        *("--served-model-name", "a", "b", "--log-level", "debug"),
    )
    assert made.daemon == (
        *(sys.executable, "-P", "-m", "inferd", "serve", "demo", "--port=6000", "--served-model-name=a"),
        *("--served-model-name=b", "--max-num-seqs=4", "--no-enable-prefix-caching", "--log-level=debug"),
    )
    assert made.gateway == (
        *(sys.executable, "-P", "-m", "inferd_gateway", "--backend=127.0.0.1:6000", "--port=8100"),
        *("--uvicorn-log-level=debug", "--strict-params"),
    )


def test_the_daemon_understands_what_it_is_given() -> None:
    made = plan("--max-model-len", "4k", "--max-num-seqs", "4", "--no-enable-prefix-caching", "--insecure")
    parsed = parse(COMMANDS["serve"], made.daemon[5:])
    assert parsed.get("max-model-len") == 4000
    assert parsed.get("enable-prefix-caching") is False
    assert parsed.get("port") == 50051


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::1", "[::1]"), ("[::1]", "[::1]"), ("::", "[::1]"), ("[::]", "[::1]"), ("fd00::7", "[fd00::7]"),
        ("0.0.0.0", "127.0.0.1"), ("10.0.0.7", "10.0.0.7"), ("gpu.test", "gpu.test"),
    ],
)  # fmt: skip
def test_every_address_is_one_that_can_be_reached(host: str, reached: str) -> None:
    made = plan("--host", host, "--metrics-port", "9500", "--insecure")
    assert (made.grpc, made.http) == (f"{reached}:50051", f"http://{reached}:8000")
    assert made.metrics == f"http://{reached}:9500/metrics"
    assert f"--backend={reached}:50051" in made.gateway


def test_keys_travel_by_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_API_KEY", "hunter2,other")
    monkeypatch.setenv("INFERD_PORT", "8100")
    made = plan("--host", "0.0.0.0", INFERD_PORT="8100", HOME="/root")
    assert not any("hunter2" in argument for argument in (*made.daemon, *made.gateway))
    assert made.environment == {
        "HOME": "/root",
        "INFERD_API_KEY": "hunter2,other",
        "INFERD_GATEWAY_API_KEY": "hunter2,other",
        "INFERD_GATEWAY_BACKEND_API_KEY": "hunter2",
    }
    assert made.http == "http://127.0.0.1:8100"
    shown = banner(made, "demo", "/v1/embeddings", {"input": "a"})
    assert "hunter2" not in shown
    assert "$INFERD_API_KEY" in shown


def test_the_banner_is_a_line_that_a_shell_can_run() -> None:
    line = banner(plan(), "demo", "/v1/embeddings", {"input": "a cat"}).splitlines()[-1].strip()
    words = subprocess.run(
        ["bash", "-c", f"curl() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, check=True
    )
    arguments = words.stdout.decode().split("\0")
    assert arguments[0] == "http://127.0.0.1:8000/v1/embeddings"
    assert json.loads(arguments[4]) == {"model": "demo", "input": "a cat"}


@pytest.mark.parametrize(
    ("tasks", "templates", "path"),
    [
        (["GENERATE", "SCORE_CONTINUATIONS"], ["chatml"], "/v1/chat/completions"),
        (["GENERATE", "EMBED"], [], "/v1/completions"),
        (["EMBED", "SCORE_PAIRS"], ["chatml"], "/v1/embeddings"),
        (["SCORE_PAIRS", "CLASSIFY"], [], "/rerank"),
        (["CLASSIFY"], [], "/classify"),
    ],
)
def test_the_line_asks_for_what_the_model_can_do(tasks: list[str], templates: list[str], path: str) -> None:
    info = model_pb2.GetModelInfoResponse(
        card=model_pb2.ModelCard(tasks=[model_pb2.Task.Value(f"TASK_{name}") for name in tasks]),
        chat_templates=[model_pb2.ChatTemplate(name=name) for name in templates],
    )
    assert example_call(info)[0] == path


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def supervise(*codes: str, interrupt: bool) -> tuple[int, list[int | None]]:
    """Run children made of Python code; with `interrupt` send ourselves SIGTERM once all were started."""

    async def scenario() -> tuple[int, list[int | None]]:
        supervisor = Supervisor(os.environ, patience_s=20)

        async def bring_up() -> None:
            for number, code in enumerate(codes):
                await supervisor.start(f"child {number}", child(code))
            if interrupt:
                os.kill(os.getpid(), signal.SIGTERM)

        status = await supervisor.run(bring_up())
        return status, [process.returncode for process in supervisor._children.values()]

    return asyncio.run(scenario())


def test_a_signal_stops_all_and_is_success() -> None:
    status, ends = supervise(FOREVER, FOREVER, interrupt=True)
    assert status == 0
    assert ends == [-signal.SIGTERM, -signal.SIGTERM]


def test_one_death_stops_the_other_and_is_failure() -> None:
    status, ends = supervise(FOREVER, "raise SystemExit(3)", interrupt=False)
    assert status == 1
    assert ends == [-signal.SIGTERM, 3]


def test_an_early_end_with_status_0_is_failure_too() -> None:
    assert supervise(FOREVER, "pass", interrupt=False)[0] == 1


def test_children_get_our_signal_in_reverse_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Each child appends its number when it is asked to stop; the first is asked only once the second has ended.
    code = (
        "import signal, sys\n"
        f"def stop(*_): open({str(log)!r}, 'a').write('%d'); sys.exit(0)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        f"open({str(log)!r} + '.ready%d', 'w').close()\n"
        "signal.pause()\n"
    )

    async def scenario() -> int:
        supervisor = Supervisor(os.environ, patience_s=20)

        async def bring_up() -> None:
            for number in (0, 1):
                await supervisor.start(f"child {number}", child(code % (number, number)))
                while not Path(f"{log}.ready{number}").exists():
                    await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        return await supervisor.run(bring_up())

    assert asyncio.run(scenario()) == 0
    assert log.read_text() == "10"


def test_a_failed_bring_up_is_raised_after_all_were_stopped() -> None:
    async def scenario() -> None:
        supervisor = Supervisor(os.environ, patience_s=20)

        async def bring_up() -> None:
            await supervisor.start("child", child(FOREVER))
            raise ValueError("no luck")

        with pytest.raises(ValueError, match="no luck"):
            await supervisor.run(bring_up())
        assert [process.returncode for process in supervisor._children.values()] == [-signal.SIGTERM]

    asyncio.run(scenario())


def test_children_die_with_a_killed_parent() -> None:
    code = (
        "import asyncio, os, sys\n"
        "from inferd.cli.supervisor import Supervisor\n"
        "supervisor = Supervisor(os.environ, 20)\n"
        f"asyncio.run(supervisor.run(supervisor.start('child', (sys.executable, '-c', {FOREVER!r}))))\n"
    )
    with subprocess.Popen(child(code), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        assert parent.stdout.read() == b""  # the end of the file: the child holds the pipe no longer


def test_a_key_file_and_admin_keys_reach_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("admin:boss\nobserve:watcher\ninfer:worker\n")
    monkeypatch.setenv("INFERD_ADMIN_API_KEY", "hush")
    made = plan("--api-key-file", str(file), "--insecure")
    assert made.environment["INFERD_GATEWAY_BACKEND_API_KEY"] == made.api_key == "worker"
    assert made.environment["INFERD_ADMIN_API_KEY"] == "hush"
    for command in (made.daemon, made.gateway):
        assert f"--api-key-file={file}" in command
    assert "--insecure" in made.gateway
    assert not any("hush" in argument or "worker" in argument for argument in made.daemon + made.gateway)


def test_what_up_cannot_serve(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("admin:boss\n")
    with pytest.raises(UsageError, match="scope infer"):
        plan("--api-key-file", str(file))
    with pytest.raises(UsageError, match="apart"):
        plan("--tls-cert", "c", "--tls-key", "k")
