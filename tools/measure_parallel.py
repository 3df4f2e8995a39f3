"""What a group of ranks costs: bytes read and memory per rank, and how busy the stages of a pipeline are.

    python tools/measure_parallel.py load --tensor-parallel-size 4 [--layers 12 --hidden 1024]
    python tools/measure_parallel.py bubble MODEL --sequences 8 --plot bubble.png

`load` writes a random Llama checkpoint of that size and loads it. Memory is counted beyond what a worker takes before
it loads (Python and torch), because that does not shrink with the number of ranks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from inferd.executor.factory import create_executor
from inferd.executor.group import GroupExecutor
from inferd.executor.wire import StepTime
from inferd.request import StopParams
from inferd.testing.processes import children_of, peak_memory
from inferd.testing.requests import Driver, make_request


def engine_config(path: str, tensor: int, stages: int, blocks: int) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source=path, path=path),
        cache=CacheConfig(num_blocks=blocks),
        scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=256),
        device=DeviceConfig(device="cpu", kernel_backend="reference"),
        parallel=ParallelConfig(
            tensor_parallel_size=tensor, pipeline_parallel_size=stages, backend="multiprocess", step_timeout_s=120.0
        ),
    )


def measure_load(options: argparse.Namespace) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 4,
            num_hidden_layers=options.layers,
            num_attention_heads=16,
            num_key_value_heads=8,
            max_position_embeddings=512,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        total = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        print(f"checkpoint: {total / 2**20:.0f} MiB")
        baseline: dict[int, int] = {}

        def progress(phase: str, fraction: float) -> None:
            if phase == "weights" and not baseline:  # every rank is set up and has read nothing but headers
                baseline.update({pid: peak_memory(pid)["VmHWM"] for pid in children_of(os.getpid())})

        executor = create_executor(
            engine_config(folder, options.tensor_parallel_size, options.pipeline_parallel_size, 4), progress
        )
        assert isinstance(executor, GroupExecutor)
        for rank, (pid, loaded) in enumerate(zip(children_of(os.getpid()), executor.loaded, strict=True)):
            grown = peak_memory(pid)["VmHWM"] - baseline[pid]
            print(
                f"rank {rank}: shard {loaded.weight_bytes / 2**20:.1f} MiB, read {loaded.bytes_read / 2**20:.1f} MiB, "
                f"peak memory {grown / 2**20:.1f} MiB above {baseline[pid] / 2**20:.0f} MiB: "
                f"{grown / loaded.weight_bytes:.2f} x shard"
            )
        print(f"read by all: {sum(each.bytes_read for each in executor.loaded) / 2**20:.1f} MiB")
        executor.shutdown()


def measure_bubble(options: argparse.Namespace) -> None:
    config = engine_config(options.model, 1, options.pipeline_parallel_size, 400)
    executor = create_executor(config, lambda phase, fraction: None)
    assert isinstance(executor, GroupExecutor)
    times: dict[int, list[StepTime]] = {}
    executor.on_times = lambda rank, each: times.setdefault(rank, []).extend(each)
    drive = Driver(executor=executor, config=config.scheduler, cache=config.cache)
    for key in range(options.sequences):
        stop = StopParams(max_tokens=options.tokens)
        drive.add(make_request(key, [(key * 31 + index * 7) % 1000 + 10 for index in range(32)], stop=stop))
    drive.run()
    executor.shutdown()
    begin = max(min(each.began for each in times[rank]) for rank in times)
    end = min(max(each.ended for each in times[rank]) for rank in times)
    # The trace without the first and the last tenth: filling and draining the pipeline is another figure.
    begin, end = begin + (end - begin) / 10, end - (end - begin) / 10
    for rank, steps in sorted(times.items()):
        inside = [each for each in steps if each.began >= begin and each.ended <= end]
        busy = sum(each.ended - each.began - each.wait_s for each in inside)
        span = max(each.ended for each in inside) - min(each.began for each in inside)
        print(f"stage {rank}: {len(inside)} steps, computes {busy / span:.1%} of {span:.2f} s")
    if options.plot:
        draw(times, begin, options.plot)


def draw(times: dict[int, list[StepTime]], begin: float, path: str) -> None:
    """A second of each stage as bars; what a stage waited for its predecessor is drawn light, at the step's start."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 1 + len(times)))
    for rank, steps in times.items():
        shown = [each for each in steps if begin <= each.began <= begin + 1.0]
        starts = [(each.began - begin, each.wait_s, each.ended - each.began) for each in shown]
        axes.broken_barh([(start + wait, full - wait) for start, wait, full in starts], (rank - 0.4, 0.8), color="C0")
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
    load.add_argument("--tensor-parallel-size", type=int, default=4)
    load.add_argument("--pipeline-parallel-size", type=int, default=1)
    load.add_argument("--layers", type=int, default=12)
    load.add_argument("--hidden", type=int, default=1024)
    bubble = commands.add_parser("bubble")
    bubble.add_argument("model")
    bubble.add_argument("--pipeline-parallel-size", type=int, default=2)
    bubble.add_argument("--sequences", type=int, default=8)
    bubble.add_argument("--tokens", type=int, default=64)
    bubble.add_argument("--plot")
    options = parser.parse_args()
    (measure_load if options.command == "load" else measure_bubble)(options)


if __name__ == "__main__":
    main()
