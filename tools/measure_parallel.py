"""What a group of ranks costs: bytes read and memory per rank, and how busy the stages of a pipeline are.

    python tools/measure_parallel.py load [MODEL] --tensor-parallel-size 4 [--format gguf --layers 12 --hidden 1024]
    python tools/measure_parallel.py bubble MODEL --sequences 8 --plot bubble.png

`load` loads MODEL, or a random Llama of that size which it writes. Memory is counted beyond what a worker takes before
it loads (Python and torch), because that does not shrink with the number of ranks. Bytes are what the kernel counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np

from inferd.checkpoint import open_checkpoint
from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from inferd.core.channel import FrontChannel
from inferd.core.loop import EngineLoop
from inferd.core.reclaim import Reclaimer
from inferd.executor.factory import create_executor
from inferd.executor.group import GroupExecutor
from inferd.executor.wire import StepTime
from inferd.messages import AddRequest, Shutdown, StepOutputs, ToFront, encode_frame
from inferd.request import Request, StopParams
from inferd.scheduler.scheduler import Scheduler
from inferd.testing.processes import bytes_read, children_of, peak_memory
from inferd.testing.requests import capacity, make_request

STEPS_DRAWN = 12
MIB = 1 << 20
VOCAB, HEADS, KV_HEADS, CONTEXT = 32000, 16, 8, 512  # of the checkpoint that is loaded


def engine_config(path: str, options: argparse.Namespace, tensor: int, blocks: int) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source=path, path=path, quantization=options.quantization),
        cache=CacheConfig(num_blocks=blocks),
        scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=256),
        device=DeviceConfig(device="cpu", kernel_backend=options.kernel_backend),
        parallel=ParallelConfig(
            tensor_parallel_size=tensor,
            pipeline_parallel_size=options.pipeline_parallel_size,
            backend="multiprocess",
            step_timeout_s=120.0,
        ),
    )


def write_safetensors(folder: Path, options: argparse.Namespace) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 4,
        num_hidden_layers=options.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_gguf(folder: Path, options: argparse.Namespace) -> Path:
    """The same model in blocks of type Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    hidden, inner, kv = options.hidden, options.hidden * 4, options.hidden * KV_HEADS // HEADS
    writer = GGUFWriter(path := folder / "model.gguf", "llama")
    writer.add_block_count(options.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"{token}" for token in range(VOCAB)])
    writer.add_token_merges(["1 2"])
    layer = {
        "attn_q": (hidden, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden),
    }
    layer |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    shapes = {"token_embd.weight": (VOCAB, hidden), "output.weight": (VOCAB, hidden)}
    norms = ["output_norm.weight"]
    for index in range(options.layers):
        shapes |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
        norms += [f"blk.{index}.attn_norm.weight", f"blk.{index}.ffn_norm.weight"]
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        blocks = quantize(0.02 * generator.standard_normal(shape, np.float32), GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in norms:
        writer.add_tensor(name, np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measure_load(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write = write_gguf if options.format == "gguf" else write_safetensors
        path = Path(options.model) if options.model else write(Path(folder), options)
        checkpoint = open_checkpoint(path)
        tensors = checkpoint.tensors.values()
        print(f"{checkpoint.format}: {sum(tensor.nbytes for tensor in tensors) / MIB:.1f} MiB in tensors")
        before: dict[int, tuple[int, int]] = {}

        def progress(phase: str, fraction: float) -> None:
            if phase == "weights" and not before:  # every rank is set up and has read nothing but headers
                before.update({pid: (peak_memory(pid)["VmHWM"], bytes_read(pid)) for pid in children_of(os.getpid())})

        executor = create_executor(engine_config(str(path), options, options.tensor_parallel_size, 32), progress)
        assert isinstance(executor, GroupExecutor)
        total = 0
        for rank, (pid, loaded) in enumerate(zip(children_of(os.getpid()), executor.loaded, strict=True)):
            peak, read = before[pid]
            grown, read = peak_memory(pid)["VmHWM"] - peak, bytes_read(pid) - read
            total += read
            held, own = loaded.weight_bytes, loaded.bytes_read
            print(
                f"rank {rank}: holds {held / MIB:.1f} MiB, from {own / MIB:.1f} of the file; read {read / MIB:.1f}; "
                f"peak memory {grown / MIB:.1f} MiB above {peak / MIB:.0f} MiB: {grown / held:.2f} x what it holds"
            )
        print(f"read by all: {total / MIB:.1f} MiB")
        executor.shutdown()


class Audience:
    """In the place of the front: says `requests`, and Shutdown once all of them have ended."""

    def __init__(self, requests: list[Request]) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self._open = len(requests)
        for request in requests:
            self.inbox.put(AddRequest(request))

    def send(self, message: ToFront) -> None:
        encode_frame(message)
        if isinstance(message, StepOutputs):
            self._open -= sum(output.finish is not None for output in message.outputs)
            if not self._open:
                self.inbox.put(Shutdown())


def measure_bubble(options: argparse.Namespace) -> None:
    config = engine_config(options.model, options, 1, 400)
    executor = create_executor(config, lambda phase, fraction: None)
    assert isinstance(executor, GroupExecutor)
    times: dict[int, list[StepTime]] = {}
    executor.on_times = lambda rank, each: times.setdefault(rank, []).extend(each)
    stop = StopParams(max_tokens=options.tokens)
    prompts = ([(key * 31 + index * 7) % 1000 + 10 for index in range(32)] for key in range(options.sequences))
    requests = [make_request(key, prompt, stop=stop) for key, prompt in enumerate(prompts)]
    scheduler = Scheduler(config.scheduler, config.cache, capacity(executor.info))
    reclaimer = Reclaimer(scheduler, executor, config.cache, time.monotonic)
    EngineLoop(scheduler, executor, cast("FrontChannel", Audience(requests)), reclaimer).run()
    executor.shutdown()
    begin = max(min(each.began for each in times[rank]) for rank in times)
    end = min(max(each.ended for each in times[rank]) for rank in times)
    # The trace without the first and the last tenth: filling and draining the pipeline is another figure.
    begin, end = begin + (end - begin) / 10, end - (end - begin) / 10
    for rank, steps in sorted(times.items()):
        inside = [each for each in steps if each.began >= begin and each.ended <= end]
        busy = sum(each.ended - each.began - each.wait_s for each in inside)
        span = max(each.ended for each in inside) - min(each.began for each in inside)
        each_ms = statistics.median(each.ended - each.began - each.wait_s for each in inside) * 1e3
        print(f"stage {rank}: {len(inside)} steps of {each_ms:.2f} ms, computes {busy / span:.1%} of {span:.2f} s")
    if options.plot:
        draw(times, begin, options.plot)


def draw(times: dict[int, list[StepTime]], begin: float, path: str) -> None:
    """Some steps of each stage as bars; what a stage waited for its predecessor is drawn light, at the step's start."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 1 + len(times)))
    until = [each.ended for each in times[0] if each.began >= begin][:STEPS_DRAWN][-1]
    for rank, steps in times.items():
        shown = [each for each in steps if begin <= each.began <= until]
        starts = [(each.began - begin, each.wait_s, each.ended - each.began) for each in shown]
        axes.broken_barh(
            [(start + wait, full - wait) for start, wait, full in starts],
            (rank - 0.4, 0.8),
            facecolor="C0",
            edgecolor="w",
        )
        axes.broken_barh([(start, wait) for start, wait, _ in starts], (rank - 0.4, 0.8), color="0.85")
    axes.set_yticks(sorted(times), [f"stage {rank}" for rank in sorted(times)])
    axes.set_xlabel("seconds; blue: compute, light: waiting for the stage before")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load")
    load.add_argument("model", nargs="?", help="a checkpoint; without one, one is written")
    load.add_argument("--tensor-parallel-size", type=int, default=4)
    load.add_argument("--pipeline-parallel-size", type=int, default=1)
    load.add_argument("--format", choices=("safetensors", "gguf"), default="safetensors")
    load.add_argument("--layers", type=int, default=12)
    load.add_argument("--hidden", type=int, default=1024)
    bubble = commands.add_parser("bubble")
    bubble.add_argument("model")
    bubble.add_argument("--pipeline-parallel-size", type=int, default=2)
    bubble.add_argument("--sequences", type=int, default=8)
    bubble.add_argument("--tokens", type=int, default=256)
    bubble.add_argument("--plot")
    for command in (load, bubble):
        command.add_argument("--quantization", choices=("q4", "q8"))
        command.add_argument("--kernel-backend", choices=("auto", "reference"), default="auto")
    options = parser.parse_args()
    (measure_load if options.command == "load" else measure_bubble)(options)


if __name__ == "__main__":
    main()
