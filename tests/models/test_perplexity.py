"""The fast path's quality: perplexity of a fixed text within 0.5 % of the same file dequantized to float32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from inferd.checkpoint import open_checkpoint
from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, SchedulerConfig
from inferd.executor.factory import create_executor
from inferd.request import LogprobParams, StopParams
from inferd.testing.requests import Driver, make_request
from inferd.text.tokenizer import Tokenizer

TOLERANCE = 0.005
TEXT = """
The first railways carried coal. Horses pulled the wagons along wooden rails from the mine to the river, where boats
took the load to the towns. When engines replaced the horses, the rails had to be made of iron, and later of steel,
because
the weight of the machines broke everything else. Within thirty years the tracks reached from one coast to the other. A
letter that had taken a week now arrived on the next morning, and fresh milk could be sold in places where nobody had
ever seen a cow. Clocks changed as well: until then every town had kept its own time by the sun, and now a table of
departures needed one time for all of them. People complained about the noise and the smoke, and some doctors warned
that nobody could breathe at such a speed. They were wrong about that, but right that life would never be slow again.
In the evenings the engineers wrote down how much coal and water they had used, and how late they had been. Their notes
are still kept in a library near the old station, and they show how much of the work was repairing what had broken.
"""


def perplexity(path: Path, backend: str, token_ids: list[int]) -> float:
    config = EngineConfig(
        model=ModelConfig(source="demo", path=str(path)),
        cache=CacheConfig(num_blocks=64),
        device=DeviceConfig(device="cpu", kernel_backend=backend, threads=2),
    )
    threads = torch.get_num_threads()
    executor = create_executor(config, lambda phase, fraction: None)
    drive = Driver(executor=executor, config=SchedulerConfig(), cache=config.cache)
    drive.add(make_request(1, token_ids, stop=StopParams(max_tokens=0), prompt_logprobs=LogprobParams()))
    drive.run()
    executor.shutdown()
    torch.set_num_threads(threads)
    prompt = drive.choice(1).prompt
    assert prompt is not None
    values = [each.logprob for each in prompt.prompt_logprobs]
    assert len(values) == len(token_ids) - 1
    return math.exp(-sum(values) / len(values))


def test_perplexity_is_that_of_the_float32_run(demo_gguf: Path) -> None:
    token_ids = Tokenizer.from_checkpoint(open_checkpoint(demo_gguf)).encode(TEXT)
    exact = perplexity(demo_gguf, "reference", token_ids)
    fast = perplexity(demo_gguf, "native", token_ids)
    assert 5 < exact < 100
    assert fast == pytest.approx(exact, rel=TOLERANCE)
