"""The Triton backend behind the door: custom ops, fake implementations, and a whole decoder that equals the
reference."""

import dataclasses

import pytest
import torch
from inferd_kernels.ops import OP_NAMES, AttentionShape, Ops, PagedBatch, Rope, SamplingBatch, load_ops
from inferd_kernels.proof.problems import allocate, paged_batch, relative_error
from inferd_kernels.triton import library, linear

SHAPE = AttentionShape(4, 2, 16, 0.25)


@pytest.fixture(scope="module")
def ops() -> Ops:
    return load_ops("cpu", "triton")


def test_every_op_is_triton(ops: Ops) -> None:
    assert {ops.backends[name] for name in OP_NAMES} == {"triton"}


@pytest.mark.parametrize("name", ["rms_norm", "silu_mul", "quantize_rows", "paged_attention", "linear_w4"])
def test_custom_ops_are_registered_soundly(name: str) -> None:
    x = torch.randn(2, 32)
    arguments: dict[str, tuple[object, ...]] = {
        "rms_norm": (x, torch.ones(32), 1e-5),
        "silu_mul": (x,),
        "quantize_rows": (x, torch.int8),
        "linear_w4": (x.bfloat16(), torch.zeros(4, 16, dtype=torch.uint8), torch.ones(4, 1), None, None),
        "paged_attention": attention_arguments(),
    }
    op = getattr(linear if hasattr(linear, name) else library, name)
    torch.library.opcheck(op, arguments[name], test_utils=("test_schema", "test_faketensor"))


def attention_arguments() -> tuple[object, ...]:
    tables, blocks = allocate([5, 9], 16, torch.Generator().manual_seed(0))
    batch = paged_batch([1, 3], [5, 9], tables)
    kv = torch.randn(blocks, 16, 2, 16)
    q = torch.randn(4, 4, 16)
    return (q, kv, kv, None, None, None, batch.cu_seqlens, batch.seq_lens, tables, 1, 9, 0.25, 0, 0.0)


@pytest.mark.parametrize(("queries", "lens"), [([1, 1, 7], [17, 1, 9]), ([1, 1], [0, 30]), ([4], [4])])
def test_mixed_batches_equal_the_reference(ops: Ops, queries: list[int], lens: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    tables, blocks = allocate(lens, 16, generator)
    batch = paged_batch(queries, lens, tables)
    kv = [torch.randn(blocks, 16, 2, 16, generator=generator) for _ in range(2)]
    q = torch.randn(sum(queries), 4, 16, generator=generator)
    out = ops.paged_attention(q, kv[0], kv[1], batch, SHAPE)
    rows = [row for row, length in zip(range(len(q)), lens, strict=False) if length] if 0 in lens else slice(None)
    expected = load_ops("cpu", "reference").paged_attention(q, kv[0], kv[1], batch, SHAPE)
    assert relative_error(out[rows], expected[rows]) < 2e-6


class TinyLlama:
    """Two layers of width 64 over the door alone, with one sequence in a paged cache."""

    def __init__(self, ops: Ops, seed: int = 0) -> None:
        self.ops = ops
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator) / size[-1] ** 0.5

        self.embedding = torch.randn(97, 64, generator=generator)
        self.layers = [
            (
                random(128, 64),
                random(64, 64),
                random(192, 64),
                random(64, 96),
                torch.rand(64, generator=generator) + 0.5,
            )
            for _ in range(2)
        ]
        angles = torch.arange(64).unsqueeze(1) / 100 ** (torch.arange(8) / 8)
        self.rope = Rope(torch.cat((angles.cos(), angles.sin()), 1), 16)
        self.caches = [tuple(torch.zeros(6, 16, 2, 16) for _ in range(2)) for _ in self.layers]

    def logits(self, tokens: list[int], batch: PagedBatch) -> torch.Tensor:
        ops = self.ops
        hidden = ops.embedding(torch.tensor(tokens), self.embedding, torch.float32)
        normed = ops.rms_norm(hidden, self.layers[0][4], 1e-5)
        for (qkv, output, gate_up, down, norm), cache in zip(self.layers, self.caches, strict=True):
            q = ops.rope_kv_write(ops.linear(normed, qkv), *cache, batch, self.rope, SHAPE)
            out = ops.paged_attention(q, *cache, batch, SHAPE).flatten(1)
            normed, hidden = ops.add_rms_norm(ops.linear(out, output), hidden, norm, 1e-5)
            out = ops.linear(ops.silu_mul(ops.linear(normed, gate_up)), down)
            normed, hidden = ops.add_rms_norm(out, hidden, norm, 1e-5)
        return ops.linear(normed[-1:], self.embedding)

    def generate(self, prompt: list[int], count: int, temperature: float) -> list[int]:
        tables = torch.tensor([[3, 1, 4, 2]], dtype=torch.int32)
        tokens, new = list(prompt), list(prompt)
        for _ in range(count):
            batch = paged_batch([len(new)], [len(tokens)], tables)
            sampling = SamplingBatch(
                torch.tensor([temperature]), torch.tensor([20], dtype=torch.int32), torch.tensor([0.9]), torch.zeros(1),
                torch.tensor([7]), torch.zeros(1, dtype=torch.int32), torch.tensor([len(tokens)]), temperature == 0,
            )  # fmt: skip
            new = self.ops.sample(self.logits(new, batch), sampling).tolist()
            tokens += new
        return tokens[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", range(5))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_tiny_llama_says_what_the_reference_says(ops: Ops, prompt: int, temperature: float) -> None:
    tokens = torch.randint(0, 97, (5 + 6 * prompt,), generator=torch.Generator().manual_seed(prompt)).tolist()
    said = TinyLlama(ops).generate(tokens, 8, temperature)
    assert said == TinyLlama(load_ops("cpu", "reference")).generate(tokens, 8, temperature)


def test_a_step_of_a_tiny_llama(ops: Ops) -> None:
    assert TinyLlama(ops).generate([5, 6, 7], 2, 0.0) == TinyLlama(load_ops("cpu", "reference")).generate(
        [5, 6, 7], 2, 0.0
    )


def test_padded_decode_rows_of_a_graph_are_harmless(ops: Ops) -> None:
    """A row of a captured batch without a sequence: length 0, slot -1."""
    arguments = attention_arguments()
    tables, blocks = allocate([5, 0], 16, torch.Generator().manual_seed(0))
    batch = dataclasses.replace(paged_batch([1, 1], [5, 0], tables), max_seq_len=64)
    q = torch.randn(2, 4, 16)
    kv = arguments[1]
    assert isinstance(kv, torch.Tensor)
    assert kv.shape[0] >= blocks
    out = ops.paged_attention(q, kv, kv, batch, SHAPE)
    assert (out[1] == 0).all()
    assert out[0].isfinite().all()
