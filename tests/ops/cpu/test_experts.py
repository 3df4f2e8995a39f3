"""Experts and activations against the reference, against the matmuls they are made of, and rows against batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Activation, ExpertWeights, Ops, Routes
from inferd_kernels.weights import QuantizedWeight, Weight

REFERENCE = Ops()
FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "f32", "bf16")
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def matrices(
    random_blocks: Callable[..., QuantizedWeight], kind: str, count: int, rows: int, width: int, seed: int
) -> list[Weight]:
    if kind in ("f32", "bf16"):
        values = torch.randn(count, rows, width) / width**0.5
        return list(values.to(torch.bfloat16 if kind == "bf16" else torch.float32))
    return [random_blocks(kind, rows, width, seed=seed + index) for index in range(count)]


def prepare(
    backend: Ops,
    raw: tuple[list[Weight], list[Weight]],
    activation: Activation = "silu",
    biases: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> ExpertWeights:
    return backend.prepare_experts(iter(raw[0]), iter(raw[1]), activation, biases)


def random_routes(tokens: int, count: int, top_k: int) -> Routes:
    ids = torch.stack([torch.randperm(count)[:top_k] for _ in range(tokens)]) if tokens else torch.empty(0, top_k)
    return Routes(ids.int(), torch.rand(tokens, top_k))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def pair_by_pair(ops: NativeOps, x: torch.Tensor, experts: ExpertWeights, routes: Routes) -> torch.Tensor:
    """The same through the backend's own matmuls, a row of one expert at a time."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, (ids, weights) in enumerate(zip(routes.ids.tolist(), routes.weights.tolist(), strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            first, second = (None if b is None else b[expert] for b in (experts.gate_up_bias, experts.down_bias))
            inner = ops.linear(x[token : token + 1], experts.gate_up[expert], first)
            inner = ops.activate_gated(inner, experts.activation)
            out[token] += weight * ops.linear(inner, experts.down[expert], second)[0].double()
    return out


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("top_k", [1, 3])
def test_every_format_is_what_its_matmuls_give(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str, top_k: int
) -> None:
    """More rows than a tile holds, experts without rows, an odd number of panels."""
    count, width, inner = 5, 256, 512 if kind.endswith("_k") else 288
    raw = (
        matrices(random_blocks, kind, count, 2 * inner, width, 0),
        matrices(random_blocks, kind, count, width, inner, 9),
    )
    experts = prepare(ops, raw)
    wide = tuple([weight.float() if isinstance(weight, torch.Tensor) else weight for weight in part] for part in raw)
    expected = prepare(REFERENCE, wide)
    assert experts.nbytes == sum(weight.nbytes for weight in (*experts.gate_up, *experts.down))
    for tokens in (1, 2, 37):
        x, routes = torch.randn(tokens, width), random_routes(tokens, count, top_k)
        routes.ids[routes.ids == 2] = 4 if top_k == 1 else 2
        out = ops.experts(x, experts, routes)
        assert relative_error(out, pair_by_pair(ops, x, experts, routes)) < 1e-6
        wanted = REFERENCE.experts(x, expected, routes)
        bound = {"f32": 1e-5, "bf16": 1e-5, "q8_0": 2e-4}.get(kind, 3e-2)
        assert relative_error(out, wanted) < bound


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["f32", "q4_1"])
def test_biases_and_every_activation(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str, activation: Activation
) -> None:
    count, width, inner = 4, 96, 64
    raw = (
        matrices(random_blocks, kind, count, 2 * inner, width, 0),
        matrices(random_blocks, kind, count, width, inner, 9),
    )
    biases = torch.randn(count, 2 * inner) * 4, torch.randn(count, width)
    experts = prepare(ops, raw, activation, biases)
    x, routes = torch.randn(19, width), random_routes(19, count, 2)
    out = ops.experts(x, experts, routes)
    assert relative_error(out, pair_by_pair(ops, x, experts, routes)) < 1e-6
    wanted = REFERENCE.experts(x, prepare(REFERENCE, raw, activation, biases), routes)
    assert relative_error(out, wanted) < (1e-5 if kind == "f32" else 3e-2)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_does_not_depend_on_the_batch(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str
) -> None:
    count, width = 6, 256
    raw = matrices(random_blocks, kind, count, 512, width, 0), matrices(random_blocks, kind, count, width, 256, 9)
    experts, x, routes = prepare(ops, raw), torch.randn(70, width), random_routes(70, count, 2)
    routes.ids[:40] = torch.tensor([1, 3])  # an expert with more rows than two tiles
    alone = torch.cat(
        [ops.experts(x[i : i + 1], experts, Routes(*(part[i : i + 1] for part in fields(routes)))) for i in range(70)]
    )
    for rows in (2, 5, 17, 33, 64, 70):
        assert torch.equal(
            ops.experts(x[:rows], experts, Routes(*(part[:rows] for part in fields(routes)))), alone[:rows]
        )
    flipped = ops.experts(x.flip(0), experts, Routes(*(part.flip(0) for part in fields(routes))))
    assert torch.equal(flipped, alone.flip(0))


def fields(routes: Routes) -> tuple[torch.Tensor, torch.Tensor]:
    return routes.ids, routes.weights


def test_threads_do_not_change_a_bit(
    engines: dict[tuple[str, int], NativeOps], random_blocks: Callable[..., QuantizedWeight]
) -> None:
    raw = matrices(random_blocks, "q4_k", 6, 512, 256, 0), matrices(random_blocks, "q6_k", 6, 256, 256, 9)
    x, routes = torch.randn(33, 256), random_routes(33, 6, 2)
    for isa in {isa for isa, _ in engines}:
        one, two = (engines[isa, threads].experts(x, prepare(engines[isa, threads], raw), routes) for threads in (1, 2))
        assert torch.equal(one, two)


def test_a_prompt_in_passes_is_the_prompt_in_one(engines: dict[tuple[str, int], NativeOps]) -> None:
    """Scratch is bounded: this many tokens of so wide experts go in several passes."""
    ops = next(iter(engines.values()))
    count, width, inner = 2, 32, 8192
    raw = list(torch.randn(count, 2 * inner, width) / 6), list(torch.randn(count, width, inner) / 90)
    experts, x, routes = prepare(ops, raw), torch.randn(1200, width), random_routes(1200, count, 1)
    together = ops.experts(x, experts, routes)
    for first, last in ((0, 1), (600, 640), (1190, 1200)):
        part = Routes(routes.ids[first:last], routes.weights[first:last])
        assert torch.equal(ops.experts(x[first:last], experts, part), together[first:last])


def test_experts_of_unlike_formats(ops: NativeOps, random_blocks: Callable[..., QuantizedWeight]) -> None:
    """As of files whose layers are quantized by importance."""
    kinds = ("q4_k", "q8_0", "q6_k")
    raw = (
        [random_blocks(kind, 512, 256, seed=index) for index, kind in enumerate(kinds)],
        [random_blocks(kind, 256, 256, seed=index) for index, kind in enumerate(reversed(kinds))],
    )
    experts, x, routes = prepare(ops, raw), torch.randn(21, 256), random_routes(21, 3, 2)
    out = ops.experts(x, experts, routes)
    assert relative_error(out, pair_by_pair(ops, x, experts, routes)) < 1e-6


def test_other_types_no_rows_and_what_is_refused(ops: NativeOps) -> None:
    raw = list(torch.randn(3, 32, 24) / 5), list(torch.randn(3, 24, 16) / 4)
    experts, x, routes = prepare(ops, raw), torch.randn(4, 24), random_routes(4, 3, 2)
    out = ops.experts(x.bfloat16(), experts, routes)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ops.experts(x.bfloat16().float(), experts, routes).bfloat16())
    assert ops.experts(x[:0], experts, random_routes(0, 3, 2)).shape == (0, 24)
    with pytest.raises(ValueError, match="12 columns, the experts 24"):
        ops.experts(x[:, :12], experts, routes)
    for backend, prepared in ((ops, experts), (REFERENCE, prepare(REFERENCE, raw))):
        for wrong in (-1, 3):
            with pytest.raises(IndexError):
                backend.experts(x, prepared, Routes(torch.full((4, 2), wrong, dtype=torch.int32), routes.weights))
    with pytest.raises(AssertionError, match="3 experts have gate_up, 2 down"):
        prepare(ops, (raw[0], raw[1][:2]))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (7, 16), (3, 77)])
def test_activations(ops: NativeOps, name: Activation, rows: int, width: int) -> None:
    x = torch.randn(rows, 2 * width) * 10
    x[0, 0], x[-1, -1] = 200.0, -200.0  # far enough for e^x to overflow
    torch.testing.assert_close(ops.activate_gated(x, name), REFERENCE.activate_gated(x, name), rtol=5e-6, atol=2e-6)
    assert ops.activate_gated(torch.full((1, 32), float("nan")), name).isnan().all()
    half = ops.activate_gated(x.bfloat16(), name)
    assert torch.equal(half, REFERENCE.activate_gated(x.bfloat16(), name))
    if name != "clamped_swiglu":
        torch.testing.assert_close(ops.activate(x, name), REFERENCE.activate(x, name), rtol=5e-6, atol=2e-6)
        assert ops.activate(torch.full((1, 32), float("nan")), name).isnan().all()
    else:
        with pytest.raises(ValueError, match="does not work without a gate"):
            ops.activate(x, name)


def test_clamped_swiglu_is_that_of_gpt_oss() -> None:
    """Written out as its checkpoint's authors do, with interleaving left out."""
    gate, up = torch.randn(2, 5, 40, dtype=torch.float64) * 8
    expected = (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
    torch.testing.assert_close(REFERENCE.activate_gated(torch.cat((gate, up), -1), "clamped_swiglu"), expected)


def test_the_references_experts_are_the_weighted_sum_of_their_tokens() -> None:
    x, count = torch.randn(9, 12, dtype=torch.float64), 4
    gate_up, down = torch.randn(count, 20, 12, dtype=torch.float64), torch.randn(count, 12, 10, dtype=torch.float64)
    routes = REFERENCE.route(torch.randn(9, count), 2, True)
    out = REFERENCE.experts(x, REFERENCE.prepare_experts(gate_up, down, "silu"), routes)
    for token in range(9):
        expected = torch.zeros(12, dtype=torch.float64)
        for expert, weight in zip(routes.ids[token].tolist(), routes.weights[token].tolist(), strict=True):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            expected += weight * (down[expert] @ (gate * torch.sigmoid(gate) * up))
        torch.testing.assert_close(out[token], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renormalize", [False, True])
def test_routes_are_the_largest_softmax_weights(renormalize: bool) -> None:
    logits = torch.randn(30, 8).mul(2).round()  # ties go to the lowest expert
    routes = REFERENCE.route(logits, 3, renormalize)
    masses = logits.softmax(-1)
    for row in range(30):
        order = sorted(range(8), key=lambda expert: (-float(logits[row, expert]), expert))[:3]
        assert routes.ids[row].tolist() == order
        weights = masses[row, order]
        torch.testing.assert_close(routes.weights[row], weights / weights.sum() if renormalize else weights)
