"""A stack of layers in one call gives the bits of the same layers op by op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Attention, AttentionShape, DecoderLayer, KVCache, PagedBatch, QkNorm, Rope
from inferd_kernels.weights import QuantizedWeight

WIDTH, INTERMEDIATE, PAGE, EPS = 256, 512, 16, 1e-5
SHAPE = AttentionShape(num_heads=8, num_kv_heads=2, head_dim=32, scale=32**-0.5)


def make_layers(ops: NativeOps, blocks: Callable[..., QuantizedWeight], count: int = 3) -> list[DecoderLayer]:
    torch.manual_seed(1)
    rope = Rope(torch.randn(300, 32), 32)

    def layer(index: int) -> DecoderLayer:
        def parts(rows: list[int], width: int, kinds: list[str]) -> tuple[object, ...]:
            pairs = enumerate(zip(rows, kinds, strict=True))
            return tuple(ops.prepare_weight(blocks(kind, n, width, seed=10 * index + i)) for i, (n, kind) in pairs)

        cache_dtype = torch.int8 if index == 2 else torch.float32
        return DecoderLayer(
            qkv=parts([256, 64, 64], WIDTH, ["q4_k", "q4_k", "q6_k"]) if index else parts([384], WIDTH, ["q4_1"]),
            o=(ops.prepare_weight(torch.randn(WIDTH, 256) * 0.05),),
            gate_up=parts([1024], WIDTH, ["q4_0"]),
            down=parts([WIDTH], INTERMEDIATE, ["q8_0"]),
            attention_norm=torch.rand(WIDTH),
            mlp_norm=torch.rand(WIDTH),
            attention=Attention(
                shape=replace(SHAPE, window=20 if index == 1 else 0),
                cache=KVCache(
                    ops.key_cache((40, PAGE, 2, 32), cache_dtype, torch.device("cpu")).zero_(),
                    torch.zeros(40, PAGE, 2, 32, dtype=cache_dtype),
                    (torch.zeros(40, PAGE, 2), torch.zeros(40, PAGE, 2)) if index == 2 else None,
                ),
                rope=rope,
                qk_norm=QkNorm(torch.rand(32), torch.rand(32), EPS) if index == 2 else None,
                sinks=torch.randn(8) if index == 1 else None,
            ),
            qkv_bias=torch.randn(384) if index else None,
            o_bias=torch.randn(WIDTH) if index == 1 else None,
        )

    return [layer(index) for index in range(count)]


def op_by_op(ops: NativeOps, layers: list[DecoderLayer], stream: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
    def project(x: torch.Tensor, parts: tuple[object, ...], bias: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.cat([ops.linear(x, part) for part in parts], -1)
        return out if bias is None else out + bias

    for layer in layers:
        normed = ops.rms_norm(stream, layer.attention_norm, EPS)
        qkv = project(normed, layer.qkv, layer.qkv_bias)
        q = ops.rope_kv_write(qkv, layer.attention, batch)
        attended = ops.paged_attention(q, layer.attention, batch).flatten(1)
        normed, stream = ops.add_rms_norm(project(attended, layer.o, layer.o_bias), stream, layer.mlp_norm, EPS)
        stream = stream + project(ops.activate_gated(project(normed, layer.gate_up), "silu"), layer.down)
    return stream


def test_equals_the_ops(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], paged_batch: Callable[..., PagedBatch]
) -> None:
    layers = make_layers(ops, random_blocks)
    run = ops.decoder_stack(layers, EPS)
    for new, lengths in (([140], [140]), ([1, 1, 7], [70, 33, 30])):
        batch = paged_batch(new, lengths, PAGE)
        stream = torch.randn(sum(new), WIDTH)
        out = run(stream.clone(), batch)
        assert torch.equal(out, op_by_op(ops, layers, stream, batch))
        assert out.isfinite().all()


def test_a_stream_is_the_same_alone_and_in_a_batch_and_in_chunks(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], paged_batch: Callable[..., PagedBatch]
) -> None:
    run = ops.decoder_stack(make_layers(ops, random_blocks), EPS)
    streams = torch.randn(3, 50, WIDTH)
    alone = [run(stream.clone(), paged_batch([50], [50], PAGE)) for stream in streams]
    together = run(streams.flatten(0, 1).clone(), paged_batch([50] * 3, [50] * 3, PAGE))
    assert torch.equal(together, torch.cat(alone))
    chunks = [(0, 17), (17, 18), (18, 49), (49, 50)]
    whole = paged_batch([50], [50], PAGE)
    for start, end in chunks:
        batch = replace(
            whole,
            positions=whole.positions[start:end],
            slots=whole.slots[start:end],
            cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
        )
        assert torch.equal(run(streams[0, start:end].clone(), batch), alone[0][start:end])


def test_a_layer_that_cannot_run_is_refused(ops: NativeOps, random_blocks: Callable[..., QuantizedWeight]) -> None:
    (layer,) = make_layers(ops, random_blocks, count=1)
    wrong = {
        "qkv": (torch.randn(384, WIDTH),),
        "o": layer.down,
        "mlp_norm": torch.rand(WIDTH, dtype=torch.bfloat16),
        "attention": replace(
            layer.attention, cache=KVCache(*(torch.zeros(4, PAGE, 2, 32, dtype=torch.float64) for _ in "kv"))
        ),
    }
    for field, value in wrong.items():
        with pytest.raises(ValueError, match="cache.k" if field == "attention" else field):
            ops.decoder_stack([replace(layer, **{field: value})], EPS)
    run = ops.decoder_stack([layer], EPS)
    with pytest.raises(ValueError, match="float32 of width 256"):
        run(torch.randn(2, WIDTH).bfloat16(), None)
