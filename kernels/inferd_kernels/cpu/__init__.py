"""Native CPU ops: C++ behind a plain C ABI, compiled by the package's build or on first use. Imports nothing heavy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from inferd_kernels.cpu.build import BuildError

if TYPE_CHECKING:
    from inferd_kernels.cpu.native import NativeOps

logger = logging.getLogger(__name__)


def load_native(device: str, threads: int | None, *, required: bool) -> NativeOps | None:
    """The native ops, or None (and a warning) where they cannot be built; with `required` that is a ValueError.

    They bring their own threads: set torch's to one, or its OpenMP threads spin on the same processors.
    """
    if device != "cpu":
        raise ValueError(f"kernel backend 'native' runs on cpu, not on {device!r}")
    from inferd_kernels.cpu.engine import NativeEngine
    from inferd_kernels.cpu.native import NativeOps

    try:
        return NativeOps(NativeEngine(threads))
    except (BuildError, OSError) as error:
        if required:
            raise ValueError(f"kernel backend 'native' is not available: {error}") from error
        logger.warning("native CPU kernels are not available, torch serves instead (slower): %s", error)
        return None
