"""`python -m inferd.testing.fake_core --fd N`: the real engine core around the fake executor, for tests of the front.

INFERD_FAKE_CORE holds the options as JSON; cache.num_blocks, cache.block_size and model.max_model_len of the engine
configuration count here too.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from inferd.config import EngineConfig
from inferd.core_process import run
from inferd.errors import StartupError
from inferd.executor.base import Executor, Progress
from inferd.testing.fake_executor import Behaviour, FakeExecutor, fake_info

OPTIONS_VARIABLE = "INFERD_FAKE_CORE"
LOAD_PARTS = 10


class FakeCoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    behaviour: Behaviour = Behaviour()
    vocab_size: int = 1000
    max_context_tokens: int = 2048
    num_blocks: int = 1024
    load_s: float = 0.0  # how long loading takes
    startup_error: str | None = None  # what loading fails with


def create_fake_executor(config: EngineConfig, progress: Progress) -> Executor:
    """Raises StartupError when the options say so."""
    options = msgspec.json.decode(os.environ.get(OPTIONS_VARIABLE, "{}"), type=FakeCoreOptions)
    progress("weights", 0.0)
    for part in range(LOAD_PARTS):
        time.sleep(options.load_s / LOAD_PARTS)
        progress("weights", (part + 1) / LOAD_PARTS)
    if options.startup_error is not None:
        raise StartupError(options.startup_error)
    info = fake_info(
        num_blocks=config.cache.num_blocks or options.num_blocks,
        block_size=config.cache.block_size,
        max_context_tokens=config.model.max_model_len or options.max_context_tokens,
        vocab_size=options.vocab_size,
    )
    return FakeExecutor(info, options.behaviour)


if __name__ == "__main__":
    sys.exit(run(None, create_fake_executor))
