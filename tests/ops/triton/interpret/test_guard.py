"""The guard must see each kind of defect, and stay silent on kernels without one."""

import pytest
import torch
import triton
import triton.language as tl
from inferd_kernels.proof.guard import Guard, GuardError
from triton.runtime.errors import InterpreterError


@triton.jit
def shifted_load(x_ptr, y_ptr, shift, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i + shift))


@triton.jit
def overlapping_store(y_ptr, step, N: tl.constexpr):
    tl.store(y_ptr + tl.program_id(0) * step + tl.arange(0, N), tl.zeros([N], tl.float32))


@triton.jit
def two_lanes(y_ptr, N: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, N) // 2, tl.zeros([N], tl.float32))


@triton.jit
def neighbour(x_ptr, N: tl.constexpr):
    i = tl.program_id(0)
    x = tl.load(x_ptr + (i + 1) % N)
    tl.store(x_ptr + i, x)


@triton.jit
def masked_sum(x_ptr, y_ptr, size, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + i, mask=i < size), 0))


@triton.jit
def counter(y_ptr):
    tl.atomic_add(y_ptr, 1)


def test_clean_launch_counts_its_bytes() -> None:
    x, y = torch.ones(64), torch.empty(64)
    with Guard() as guard:
        shifted_load[(4,)](x, y, 0, N=16)
    assert (guard.loaded, guard.stored, guard.launches) == (256, 256, 1)


@pytest.mark.parametrize("shift", [1, -1, 1 << 20])
def test_address_outside_a_tensor(shift: int) -> None:
    with pytest.raises((GuardError, InterpreterError), match="out of bounds"), Guard():
        shifted_load[(4,)](torch.ones(64), torch.empty(64), shift, N=16)


def test_a_view_ends_where_the_view_ends() -> None:
    whole = torch.ones(128)
    with pytest.raises((GuardError, InterpreterError), match="out of bounds"), Guard():
        shifted_load[(4,)](whole[:64], torch.empty(64), 1, N=16)


def test_two_programs_write_one_element() -> None:
    with pytest.raises((GuardError, InterpreterError), match="store race"), Guard():
        overlapping_store[(2,)](torch.empty(64), 8, N=16)


def test_two_lanes_write_one_element() -> None:
    with pytest.raises((GuardError, InterpreterError), match="two lanes"), Guard():
        two_lanes[(1,)](torch.empty(64), N=16)


def test_one_program_reads_what_another_writes() -> None:
    with pytest.raises((GuardError, InterpreterError), match="load race"), Guard():
        neighbour[(4,)](torch.zeros(4), N=4)


def test_masked_lanes_are_poison() -> None:
    out = torch.zeros(1)
    with Guard():
        masked_sum[(1,)](torch.ones(10), out, 10, N=16)
    assert out.isnan().all()


def test_fresh_memory_is_poison() -> None:
    with Guard():
        assert torch.empty(4).isnan().all()


def test_atomics_may_meet() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with Guard():
        counter[(5,)](out)
    assert out.item() == 5
