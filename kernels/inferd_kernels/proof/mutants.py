"""Kernels with one deliberate defect each, made from their source text.

A mutant is (file, text, replacement). Everything of `inferd_kernels.triton` that imports the changed file is loaded
anew beside it, under names of its own, so the real modules stay as they are.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import inferd_kernels.triton

SOURCE = Path(inferd_kernels.triton.__file__).parent
PACKAGE = "inferd_kernels.triton"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # without .py
    old: str
    new: str
    case: str  # the check that must notice
    nth: int = 0  # which occurrence


def load(mutant: Mutant, folder: Path, module: str) -> ModuleType:
    """`module` (a file of the package) as it would be with the defect. Raises ValueError when the text is not there."""
    text = (SOURCE / f"{mutant.file}.py").read_text()
    pieces = text.split(mutant.old)
    if len(pieces) <= mutant.nth + 1:
        raise ValueError(f"mutant {mutant.name!r}: {mutant.old!r} is not in {mutant.file}.py {mutant.nth + 1} times")
    changed = mutant.old.join(pieces[: mutant.nth + 1]) + mutant.new + mutant.old.join(pieces[mutant.nth + 1 :])
    prefix = "mutant_" + re.sub(r"\W+", "_", mutant.name)
    defect = _import(folder, f"{prefix}_{mutant.file}", changed)
    if module == mutant.file:
        return defect
    user = (SOURCE / f"{module}.py").read_text()
    user = user.replace(f"from {PACKAGE}.{mutant.file} import", f"from {prefix}_{mutant.file} import")
    return _import(folder, f"{prefix}_{module}", user)


def _import(folder: Path, name: str, text: str) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
