"""Importing torch, which is most of a start: 1.6 s of one core."""

from __future__ import annotations

import sys
from types import ModuleType

# Python code for tensors without data, one function an operator: what torch.compile and fake tensors need.
META_KERNELS = "torch._meta_registrations"


def import_torch() -> None:
    """Import torch without its META_KERNELS: a fifth of the time, and 18 MB. A later import of them finds them."""
    if "torch" in sys.modules:
        return
    sys.modules[META_KERNELS] = ModuleType(META_KERNELS)
    try:
        import torch  # noqa: F401
    finally:
        sys.modules.pop(META_KERNELS, None)  # another thread may have come here too
