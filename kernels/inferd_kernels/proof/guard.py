"""What no run on a GPU shows: every address, every pair of programs and every masked lane of a launch, checked.

    with Guard() as guard:
        launch(...)

While active, each interpreted launch is held to this:
  bounds  an unmasked address lies wholly inside one of the launch's tensor arguments (views: inside the view's extent)
  races   no element is written by two programs, or written by one and read by another, or twice by one store; atomics
          among themselves are exempt. So the result cannot depend on the order in which programs run.
  poison  masked lanes of a load without `other` are NaN or garbage, and fresh torch.empty memory is NaN or the largest
          integer: a value that is used without having been defined shows in the result
It also counts the bytes loaded and stored by unmasked lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as stock

Builder = stock.InterpreterBuilder
PATCHED = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas", "set_grid_idx")


class GuardError(AssertionError):
    """A launch broke a rule; the message names the program, the access and the distance."""


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and one past the last byte that a view can address."""
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (span + 1) * tensor.element_size()


class Guard:
    """Context manager; not reentrant. `loaded` and `stored` are bytes over all launches inside it."""

    def __init__(self) -> None:
        self.loaded = 0
        self.stored = 0
        self.launches = 0
        self._program = (0, 0, 0)
        self._bounds = np.zeros((0, 2), dtype=np.uint64)
        self._accesses: dict[str, list[tuple[np.ndarray, int]]] = {}
        self._saved: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Guard:
        self._saved = {name: getattr(Builder, name) for name in PATCHED}
        self._saved_start = stock.GridExecutor._init_args_hst
        self._saved_end = stock.GridExecutor._restore_args_dev
        self._was_deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)  # torch then fills fresh memory with NaN
        guard = self

        def start(executor: Any, args: Any, kwargs: Any) -> Any:
            host = guard._saved_start(executor, args, kwargs)
            guard._begin([*host[0], *host[1].values()])
            return host

        def end(executor: Any, *args: Any) -> Any:
            guard._finish()
            return guard._saved_end(executor, *args)

        def set_grid_idx(builder: Any, x: int, y: int, z: int) -> Any:
            guard._program = (x, y, z)
            return guard._saved["set_grid_idx"](builder, x, y, z)

        stock.GridExecutor._init_args_hst = start
        stock.GridExecutor._restore_args_dev = end
        Builder.set_grid_idx = set_grid_idx
        self._patch_memory()
        return self

    def _patch_memory(self) -> None:
        guard, saved = self, self._saved

        def load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
            guard._check(pointers, mask.data, "load")
            if other is None and not np.all(mask.data):
                other = _garbage(pointers)
            return saved["create_masked_load"](builder, pointers, mask, other, *rest)

        def store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            guard._check(pointers, mask.data, "store")
            return saved["create_masked_store"](builder, pointers, value, mask, *rest)

        def rmw(builder: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            guard._check(pointers, mask.data, "atomic")
            return saved["create_atomic_rmw"](builder, operation, pointers, value, mask, *rest)

        def cas(builder: Any, pointers: Any, *rest: Any) -> Any:
            guard._check(pointers, np.ones(np.shape(pointers.data), dtype=bool), "atomic")
            return saved["create_atomic_cas"](builder, pointers, *rest)

        Builder.create_masked_load, Builder.create_masked_store = load, store
        Builder.create_atomic_rmw, Builder.create_atomic_cas = rmw, cas

    def __exit__(self, *_: object) -> None:
        for name, function in self._saved.items():
            setattr(Builder, name, function)
        stock.GridExecutor._init_args_hst = self._saved_start
        stock.GridExecutor._restore_args_dev = self._saved_end
        torch.use_deterministic_algorithms(self._was_deterministic)

    def _begin(self, arguments: list[Any]) -> None:
        extents = sorted({extent(item) for item in arguments if isinstance(item, torch.Tensor) and item.numel()})
        self._bounds = np.array(extents, dtype=np.uint64).reshape(-1, 2)
        self._accesses = {"load": [], "store": [], "atomic": []}
        self.launches += 1

    def _check(self, pointers: Any, mask: np.ndarray, kind: str) -> None:
        addresses = np.asarray(pointers.data).reshape(-1)
        live = np.broadcast_to(mask, np.shape(pointers.data)).reshape(-1).astype(bool)
        touched = addresses[live]
        if touched.size == 0:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if kind == "load":
            self.loaded += touched.size * size
        else:
            self.stored += touched.size * size
        unique = np.unique(touched)
        if kind == "store" and unique.size != touched.size:
            raise GuardError(f"store race: program {self._program} writes one element from two lanes")
        inside = np.zeros(unique.shape, dtype=bool)
        for low, high in self._bounds:
            inside |= (unique >= low) & (unique + np.uint64(size) <= high)
        if not inside.all():
            raise GuardError(self._describe(int(unique[~inside][0]), kind))
        self._accesses[kind].append((unique, hash(self._program)))

    def _describe(self, address: int, kind: str) -> str:
        if not len(self._bounds):
            return f"{kind} out of bounds in program {self._program}: the launch has no tensor"
        spans = [(int(low), int(high)) for low, high in self._bounds]
        low, high = min(spans, key=lambda span: min(abs(address - span[0]), abs(address - span[1])))
        return (
            f"{kind} out of bounds in program {self._program}: byte {address - low} of a tensor of {high - low} bytes"
        )

    def _finish(self) -> None:
        stores, atomics, loads = (_owners(self._accesses[kind]) for kind in ("store", "atomic", "load"))
        if _shared(*stores):
            raise GuardError("store race: two programs write one element")
        for other, name in ((loads, "load"), (atomics, "atomic")):
            if _conflict(stores, other):
                raise GuardError(f"{name} race: one program writes an element that another one touches")
        if _conflict(atomics, loads):
            raise GuardError("load race: one program reads an element that another one changes atomically")


def _garbage(pointers: Any) -> Any:
    kind = pointers.get_element_ty()
    dtype = stock._get_np_dtype(kind)
    if np.issubdtype(dtype, np.floating):
        fill: Any = np.nan
    else:
        fill = 0x7FC0 if kind == tl.bfloat16 else 0x7F  # NaN in bf16 and in fp8 e4m3, odd numbers elsewhere
    return stock.TensorHandle(np.full(np.shape(pointers.data), fill, dtype=dtype), kind)


def _owners(accesses: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (address, program) pairs, sorted by address."""
    if not accesses:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    addresses = np.concatenate([item for item, _ in accesses])
    programs = np.concatenate([np.full(item.shape, program, dtype=np.int64) for item, program in accesses])
    order = np.lexsort((programs, addresses))
    addresses, programs = addresses[order], programs[order]
    first = np.ones(addresses.shape, dtype=bool)
    first[1:] = (addresses[1:] != addresses[:-1]) | (programs[1:] != programs[:-1])
    return addresses[first], programs[first]


def _shared(addresses: np.ndarray, _: np.ndarray) -> bool:
    return bool((addresses[1:] == addresses[:-1]).any())


def _conflict(writers: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether a program of `others` touches an element that a different program of `writers` owns."""
    if not writers[0].size or not others[0].size:
        return False
    at = np.searchsorted(writers[0], others[0])
    at = np.minimum(at, writers[0].size - 1)
    same = writers[0][at] == others[0]
    return bool((writers[1][at][same] != others[1][same]).any())
