"""The engine's speed on this machine, line by line against the targets: `python tools/measure_speed.py [MODEL]`.

Starts `inferd up MODEL`, measures over HTTP with the load generator beside it, then loads the model into this process
and measures the engine alone (scheduler and executor, no sockets). Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from inferd.testing.processes import children_of

READY_TIMEOUT_S = 60.0
POLL_S = 0.05
SETTLE_S = 5.0  # a gateway's helper processes start after it serves
IDLE_S = 20.0
VOCABULARY = 40_000  # prompts of the engine alone are random tokens below this


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serving(model: str, flags: list[str]) -> Iterator[tuple[int, str]]:
    """`inferd up MODEL`; yields its pid and URL."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "inferd", "up", model, "--port", str(port), "--grpc-port", str(free_port())]
    command += ["--metrics-port", "0", "--served-model-name", "bench", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + READY_TIMEOUT_S
    try:
        while not is_ready(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"inferd up did not become ready (exit status {process.poll()})")
            time.sleep(POLL_S)
        yield process.pid, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def descendants(pid: int) -> list[int]:
    children = children_of(pid)
    return children + [each for child in children for each in descendants(child)]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """CPU seconds that anybody has used since the machine started, those the host took included."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU seconds of this process and of all children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def resident_mb(pid: int) -> float:
    """Proportional set size in 10^6 bytes: pages that several processes share count once."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} has no Pss")


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def bench(url: str, *flags: str) -> dict[str, object]:
    """The summary of `inferd bench serve`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [sys.executable, "-P", "-m", "inferd", "bench", "serve", "--protocol", "http", "--target", url]
        command += ["--model", "bench", "--json", str(out), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary: dict[str, object] = json.loads(out.read_text())["summary"]
        return summary


def p50(summary: dict[str, object], name: str) -> float:
    values = summary[name]
    assert isinstance(values, dict)
    return float(values["p50"])


def measure_served(model: str, rounds: int, flags: list[str]) -> dict[str, str]:
    """Everything that a client sees."""
    figures: dict[str, str] = {}
    with serving(model, flags) as (pid, url):
        time.sleep(SETTLE_S)
        processes = descendants(pid)
        before = {each: cpu_seconds(each) for each in processes}
        time.sleep(IDLE_S)
        idle = sum(cpu_seconds(each) - before[each] for each in processes) / IDLE_S
        figures["idle CPU, % of a core"] = f"{100 * idle:.2f}"
        rows: dict[str, list[float]] = {}
        for number in range(rounds):
            seed = ("--seed", str(1000 + number))
            short = bench(url, "--num-requests", "5", "--output-tokens", "8", *seed)
            long = bench(url, "--num-requests", "5", "--output-tokens", "8", "--prompt-words", "512", *seed)
            one = bench(url, "--num-requests", "4", *seed)
            many = bench(url, "--num-requests", "32", "--concurrency", "16", *seed)
            cached = bench(
                url,
                *("--num-requests", "6", "--output-tokens", "8", "--prefix-words", "2000", "--prompt-words", "8"),
                *seed,
            )
            for name, value in (
                ("TTFT 128 in, ms", p50(short, "ttft_ms")),
                ("TTFT 512 in, ms", p50(long, "ttft_ms")),
                ("1 stream, tok/s", float(str(one["output_tokens_per_s"]))),
                ("1 stream ITL p50, ms", p50(one, "itl_ms")),
                ("16 streams, tok/s", float(str(many["output_tokens_per_s"]))),
                ("TTFT cached 2k prefix, ms", p50(cached, "ttft_ms")),
            ):
                rows.setdefault(name, []).append(value)
        figures |= {
            name: f"{statistics.median(values):.1f}   {[round(value, 1) for value in values]}"
            for name, values in rows.items()
        }
    return figures


def measure_memory(model: str, flags: list[str]) -> dict[str, str]:
    """Of a daemon that has served nothing else: the prefix cache keeps what was computed, up to the pool's size."""
    with serving(model, flags) as (pid, url):
        time.sleep(SETTLE_S)
        daemon = [each for each in descendants(pid) if "gateway" not in command_of(each)]
        before = [resident_mb(each) for each in daemon]
        sixteen = ("--num-requests", "16", "--concurrency", "16", "--prompt-words", "900", "--output-tokens", "124")
        bench(url, *sixteen, "--warmup", "0")
        after = [resident_mb(each) for each in daemon]
        time.sleep(SETTLE_S)
        idle = [resident_mb(each) for each in daemon]
    rows = {"before the first request": before, "after 16 x 1k": after, "and idle": idle}
    return {
        f"RSS of the daemon, MB, {name}": f"{sum(parts):.0f}   {[round(part) for part in parts]}"
        for name, parts in rows.items()
    }


def measure_startup(model: str, runs: int) -> dict[str, str]:
    command = [sys.executable, "-P", "-m", "inferd", "bench", "startup", "--runs", str(runs), model]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    return {"exec to SERVING, s": f"{result['serving_median_s']}   {result['serving_s']}"}


def measure_engine(model: str, rounds: int) -> dict[str, str]:
    """Scheduler and executor in this process."""
    from inferd.checkpoint.source import resolve_source
    from inferd.config import CacheConfig, EngineConfig, ModelConfig
    from inferd.executor.factory import create_executor

    path = str(resolve_source(model, None, lambda phase, done: None))
    config = EngineConfig(model=ModelConfig(source=model, path=path), cache=CacheConfig(num_blocks=4000))
    executor = create_executor(config, lambda phase, done: None)
    rows: dict[str, list[float]] = {}
    for seed in range(rounds):
        source = random.Random(seed)

        def prompt(length: int, source: random.Random = source) -> list[int]:
            return [source.randrange(100, VOCABULARY) for _ in range(length)]

        for name, prompts, tokens in (
            ("in process: prefill 512, tok/s", [prompt(512)], 1),
            ("in process: decode 128, 1 stream, tok/s", [prompt(1)], 129),
            ("in process: decode 128 after 128, 1 stream, tok/s", [prompt(128)], 129),
            ("in process: decode, 16 streams, tok/s", [prompt(128) for _ in range(16)], 129),
        ):
            rows.setdefault(name, []).append(run_engine(config, executor, prompts, tokens))
    executor.shutdown()
    return {
        name: f"{statistics.median(values):.1f}   {[round(value, 1) for value in values]}"
        for name, values in rows.items()
    }


def run_engine(config: object, executor: object, prompts: list[list[int]], max_tokens: int) -> float:
    """Tokens per second: of the prompt where one token comes out, else of the output after every first token."""
    from inferd.config import EngineConfig
    from inferd.executor.local import LocalExecutor
    from inferd.request import StopParams
    from inferd.scheduler.scheduler import Scheduler
    from inferd.testing.requests import capacity, make_request

    assert isinstance(config, EngineConfig)
    assert isinstance(executor, LocalExecutor)
    scheduler = Scheduler(config.scheduler, config.cache, capacity(executor.info))
    stop = StopParams(max_tokens=max_tokens)
    for key, each in enumerate(prompts):
        scheduler.add(make_request(key, each, stop=stop))
    started = time.perf_counter()
    counted = 0
    decoding_since: float | None = None
    while (plan := scheduler.schedule(time.monotonic())) is not None:
        outputs = scheduler.commit(plan, executor.execute(plan), time.monotonic())
        if decoding_since is not None:
            counted += sum(len(output.token_ids) for output in outputs)
        elif all(item.choices for item in plan.items) and len(plan.items) == len(prompts):
            decoding_since = time.perf_counter()
    ended = time.perf_counter()
    if (left := scheduler.schedule(time.monotonic())) is not None:
        executor.execute(left)
    if max_tokens == 1:
        return sum(map(len, prompts)) / (ended - started)
    assert decoding_since is not None
    return counted / (ended - decoding_since)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="served,memory,startup,engine")
    parser.add_argument("flags", nargs="*", help="further flags of `inferd up`, after --")
    arguments = parser.parse_args()
    parts = {
        "served": lambda: measure_served(arguments.model, arguments.rounds, arguments.flags),
        "memory": lambda: measure_memory(arguments.model, arguments.flags),
        "startup": lambda: measure_startup(arguments.model, arguments.rounds),
        "engine": lambda: measure_engine(arguments.model, arguments.rounds),
    }
    for part in arguments.parts.split(","):
        machine, own = machine_seconds(), own_seconds()
        for name, figure in parts[part]().items():
            print(f"{name:52} {figure}", flush=True)
        spent, ours = machine_seconds() - machine, own_seconds() - own
        print(f"({part}: other processes and the host took {1 - ours / max(spent, ours):.1%} of the CPU time used)")


if __name__ == "__main__":
    main()
