"""The torch reference of every op: the definition the other backends are tested against, and the portable path."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from inferd_kernels.ops import AttentionShape
from inferd_kernels.weights import Fp8Weight, QuantizedWeight, Weight

if TYPE_CHECKING:
    from inferd_kernels.ops import LatentCache, PagedBatch, QkNorm, Rope, SamplingBatch

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF
QUANTIZATIONS = ("q4", "q8", "fp8")  # of weights at load; computed on as floats
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8)
SCALE_FLOOR = 2.0**-100  # a row of zeros is divided by a number, and stays zero
LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


def prepare_weight(weight: Weight, dtype: torch.dtype = torch.float32) -> Weight:
    """Dequantize to `dtype`: torch has no matmul over ggml blocks. Float tensors pass unchanged."""
    if isinstance(weight, Fp8Weight):
        return dequantize_fp8(weight, dtype)
    return dequantize(weight, dtype) if isinstance(weight, QuantizedWeight) else weight


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[N, K] values of the quantized blocks. Raises ValueError for a format the gguf package cannot dequantize."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    try:
        kind = GGMLQuantizationType[weight.format.upper()]
        values = gguf_dequantize(weight.blocks.numpy(), kind)
    except (KeyError, NotImplementedError) as error:
        raise ValueError(f"quantization type {weight.format} cannot be dequantized") from error
    return torch.from_numpy(values).reshape(weight.shape).to(dtype)


def dequantize_fp8(weight: Fp8Weight, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
    """The [N, K] values, or those of `rows`."""
    values, scale = _bytes(weight.values), weight.scale
    if rows is not None:
        values, scale = values[rows], scale[rows]
    return (values.view(weight.values.dtype).float() * scale.unsqueeze(1)).to(dtype)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T,K] @ weight [N,K]^T + bias [N] -> [T,N]."""
    return F.linear(x, weight, bias)


def embedding(ids: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows `ids` [T] of weight [V,E] -> [T,E] in `dtype`."""
    return F.embedding(ids, weight).to(dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 (Zhang & Sennrich 2019).

    The normalized value is rounded to x.dtype before the product, as Llama checkpoints were trained.
    """
    values = x.float()
    normed = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = residual + x rounded to storage; (rms_norm(h), h)."""
    hidden = residual + x
    return rms_norm(hidden, weight, eps), hidden


def rotate(x: torch.Tensor, rope: Rope, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [T,H,D] at positions [T], half-split form (Su et al. 2021), in float32."""
    half = rope.rotary_dim // 2
    cos, sin = rope.cos_sin[positions].unsqueeze(1).split(half, dim=-1)
    values = x.float()
    first, second, rest = values.split((half, half, x.shape[-1] - rope.rotary_dim), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)


def rope_kv_write(  # noqa: PLR0913 - the op's operands
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    rope: Rope | None,
    shape: AttentionShape,
    qk_norm: QkNorm | None = None,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Split qkv [T,(Hq+2Hk)D], norm and rotate q and k, write k and v at batch.slots; returns q [T,Hq,D].

    With kv_scales [blocks,P,Hk] float32 the caches are fp8 e4m3 or int8, quantized per token and KV head.
    """
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    q, k, v = qkv.view(-1, heads + 2 * kv_heads, dim).split((heads, kv_heads, kv_heads), dim=1)
    if qk_norm is not None:
        q = rms_norm(q, qk_norm.q_weight, qk_norm.eps)
        k = rms_norm(k, qk_norm.k_weight, qk_norm.eps)
    if rope is not None:
        q, k = rotate(q, rope, batch.positions), rotate(k, rope, batch.positions)
    kept = batch.slots >= 0
    slots = batch.slots[kept]
    places = slots // k_cache.shape[1], slots % k_cache.shape[1]
    for side, (cache, rows) in enumerate(((k_cache, k[kept]), (v_cache, v[kept]))):
        if kv_scales is None:
            cache[places] = rows.to(cache.dtype)
        else:
            values, scale = quantize_rows(rows, cache.dtype)
            _bytes(cache)[places] = _bytes(values)
            kv_scales[side][places] = scale
    return q


def quantize_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(values like x in `dtype`, scale [...] float32) over the last dimension: scale = max|x| / limit, values = x /
    scale.

    fp8 rounds to nearest even and saturates at 448, int8 rounds half to even and saturates at 127.
    """
    limit = LIMITS[dtype]
    wide = x.float()
    scale = (wide.abs().amax(-1) / limit).clamp(min=SCALE_FLOOR)
    values = (wide / scale.unsqueeze(-1)).clamp(-limit, limit)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """8-bit values as bytes: torch indexes few types of 8 bits."""
    return values.view(torch.uint8)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    shape: AttentionShape,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Causal attention of q [T,Hq,D] over each sequence's pages -> [T,Hq,D].

    Query row r of sequence i sits at position p = batch.positions[r] and sees keys j with p - window < j <= p.
    kv_scales as in rope_kv_write.
    """
    out = torch.empty_like(q)
    starts = batch.cu_seqlens.tolist()
    page = k_cache.shape[1]
    for index, seq_len in enumerate(batch.seq_lens.tolist()):
        rows = slice(starts[index], starts[index + 1])
        if rows.start == rows.stop:
            continue
        if seq_len == 0:  # a padded row of a decode batch
            out[rows] = 0
            continue
        blocks = batch.block_tables[index, : -(-seq_len // page)].long()
        k_scale, v_scale = kv_scales or (None, None)
        keys = _gather(k_cache, k_scale, blocks, seq_len).to(q.dtype)
        values = _gather(v_cache, v_scale, blocks, seq_len).to(q.dtype)
        out[rows] = _attend(q[rows], keys, values, seq_len, shape)
    return out


def _gather(cache: torch.Tensor, scale: torch.Tensor | None, blocks: torch.Tensor, seq_len: int) -> torch.Tensor:
    """The first seq_len rows [seq_len,Hk,D] of the pages `blocks`; float32 from an 8-bit cache."""
    if scale is None:
        return cache[blocks].flatten(0, 1)[:seq_len]
    values = _bytes(cache)[blocks].view(cache.dtype).flatten(0, 1)[:seq_len]
    return values.float() * scale[blocks].flatten(0, 1)[:seq_len].unsqueeze(-1)


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seq_len: int, shape: AttentionShape
) -> torch.Tensor:
    """The last q.shape[0] positions of one sequence against its keys and values [seq_len,Hk,D]."""
    length = q.shape[0]
    query = q.transpose(0, 1).unsqueeze(0)
    keys, values = keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)
    gqa = shape.num_heads != shape.num_kv_heads
    if shape.softcap:
        return _attend_softcap(query, keys, values, shape, _mask(length, seq_len, shape.window, q.device))
    mask = None
    if length > 1 or shape.window:
        mask = _mask(length, seq_len, shape.window, q.device)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=shape.scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def _mask(length: int, seq_len: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, seq_len] True where the query may look."""
    rows = torch.arange(seq_len - length, seq_len, device=device).unsqueeze(1)
    columns = torch.arange(seq_len, device=device).unsqueeze(0)
    mask = columns <= rows
    return mask & (columns > rows - window) if window else mask


def _attend_softcap(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, shape: AttentionShape, mask: torch.Tensor
) -> torch.Tensor:
    """softmax(cap * tanh(qk / cap)) v (Gemma 2)."""
    group = shape.num_heads // shape.num_kv_heads
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = query.float() @ keys.float().transpose(-1, -2) * shape.scale
    scores = shape.softcap * torch.tanh(scores / shape.softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(values.dtype)
    return (weights @ values)[0].transpose(0, 1)


def write_latents(rows: torch.Tensor, cache: LatentCache, batch: PagedBatch) -> None:
    """Rows [T, size] into `cache` at batch.slots; -1 writes nothing."""
    kept = batch.slots >= 0
    slots, page = batch.slots[kept], cache.latents.shape[1]
    cache.latents[slots // page, slots % page] = rows[kept].to(cache.latents.dtype)


def latent_attention(q: torch.Tensor, cache: LatentCache, batch: PagedBatch, rank: int, scale: float) -> torch.Tensor:
    """Causal attention of q [T,H,D] over the cached vectors [D] of each sequence, which are one key for all heads and
    whose first `rank` values are its value (multi-query form of DeepSeek-V2's latent attention, 2024) -> [T,H,rank]."""
    out = q.new_empty((*q.shape[:2], rank))
    shape = AttentionShape(q.shape[1], 1, q.shape[2], scale)
    starts, page = batch.cu_seqlens.tolist(), cache.latents.shape[1]
    for index, seq_len in enumerate(batch.seq_lens.tolist()):
        rows = slice(starts[index], starts[index + 1])
        if seq_len == 0:  # a padded row of a decode batch
            out[rows] = 0
        elif rows.start < rows.stop:
            blocks = batch.block_tables[index, : -(-seq_len // page)].long()
            keys = cache.latents[blocks].flatten(0, 1)[:seq_len].unsqueeze(1).to(q.dtype)
            out[rows] = _attend(q[rows], keys, keys[..., :rank], seq_len, shape)
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for gate_up [T,2I] = gate | up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias over the last dimension, h = residual + x, in float32
    (Ba et al. 2016)."""
    hidden = x if residual is None else residual + x
    normed = F.layer_norm(hidden.float(), hidden.shape[-1:], weight.float(), bias.float(), eps)
    return normed.to(x.dtype)


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    """gelu: x * Phi(x) by the error function; gelu_tanh: its tanh approximation (Hendrycks & Gimpel 2016); relu."""
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def self_attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """Attention of packed sequences over themselves, in both directions, without a cache -> [T,Hq,D].

    Sequence i is the rows cu_seqlens[i]:cu_seqlens[i+1] of qkv [T,(Hq+2Hk)D].
    """
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    q, k, v = qkv.view(-1, heads + 2 * kv_heads, dim).transpose(0, 1).split((heads, kv_heads, kv_heads))
    out = qkv.new_empty((qkv.shape[0], heads, dim))
    starts = cu_seqlens.tolist()
    for start, end in pairwise(starts):
        query, keys, values = (part[None, :, start:end] for part in (q, k, v))
        attended = F.scaled_dot_product_attention(query, keys, values, scale=shape.scale, enable_gqa=heads != kv_heads)
        out[start:end] = attended[0].transpose(0, 1)
    return out


def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """cache[destinations[i]] = cache[sources[i]], all at the same time.

    No destination is a source or a second time a destination; a block may be the source of several copies.
    """
    cache = _bytes(cache) if cache.element_size() == 1 else cache
    cache[destinations] = cache[sources]


def penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """In place on rows [R] int32 of logits [S,V] float32, at tokens [R,L] int32 (distinct in a row, -1 pads).

    l' = (l / repetition if l > 0 else l * repetition) - frequency * count - presence * [count > 0] (Keskar et al. 2019;
    OpenAI), counts [R,L] int32 occurrences in the output: 0 is a token of the prompt alone. Penalties [R] float32.
    """
    rows = rows.long()
    listed = tokens >= 0
    at = torch.where(listed, tokens, 0).long()
    values = logits[rows.unsqueeze(1), at]
    rate = repetition.unsqueeze(1)
    values = torch.where(values > 0, values / rate, values * rate)
    values = values - frequency.unsqueeze(1) * counts - presence.unsqueeze(1) * (counts > 0)
    spread = rows.unsqueeze(1).expand_as(at)
    logits[spread[listed], at[listed]] = values[listed]


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """In place: -inf in rows [R] int32 of logits [S,V] where bit token % 32 of bits [R, ceil(V/32)] int32, word
    token // 32, is 0."""
    spread = bits.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=bits.device) & 1
    refused = spread.flatten(1)[:, : logits.shape[1]] == 0
    logits[rows.long()] = logits[rows.long()].masked_fill(refused, float("-inf"))


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """One token id per row of logits [S,V]: argmax where temperature is 0, else Gumbel-max over the kept tokens.

    argmax(logits / temperature + Gumbel noise) draws from the softmax (Gumbel 1954; Maddison et al. 2014), so no
    sum over the vocabulary is needed and shards can each keep their own maximum.
    """
    if batch.all_greedy:
        return logits.argmax(-1)
    out = logits.argmax(-1)
    rows = (batch.temperature > 0).nonzero().flatten()
    scaled = logits[rows].float() / batch.temperature[rows].unsqueeze(1)
    scaled = filter_logits(scaled, batch.top_k[rows], batch.top_p[rows], batch.min_p[rows])
    noise = gumbel_noise(logits.shape[1], batch.seeds[rows], batch.choices[rows], batch.positions[rows])
    out[rows] = (scaled + noise).argmax(-1)
    return out


def filter_logits(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """-inf outside the kept set: the top_k largest, then of those the smallest set of mass >= top_p, then
    probabilities of at least min_p times the largest. Equal logits are kept or dropped together."""
    vocab = scaled.shape[1]
    if not bool(((top_k > 0) & (top_k < vocab)).any() or (top_p < 1).any() or (min_p > 0).any()):
        return scaled
    ordered = scaled.sort(-1, descending=True).values
    limit = torch.where(top_k > 0, top_k.long().clamp(max=vocab), vocab)
    threshold = ordered.gather(1, (limit - 1).unsqueeze(1))
    masses = ordered.masked_fill(ordered < threshold, float("-inf")).softmax(-1)
    before = masses.cumsum(-1) - masses
    nucleus = top_p.unsqueeze(1)
    kept = (((before < nucleus) & (masses > 0)) | (nucleus >= 1)).sum(-1).clamp(min=1)
    threshold = torch.maximum(threshold, ordered.gather(1, (kept - 1).unsqueeze(1)))
    floor = ordered[:, :1] + min_p.clamp(min=1e-38).log().unsqueeze(1)
    threshold = torch.where(min_p.unsqueeze(1) > 0, torch.maximum(threshold, floor), threshold)
    return scaled.masked_fill(scaled < threshold, float("-inf"))


def gumbel_noise(
    vocab: int, seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor, first: int = 0
) -> torch.Tensor:
    """[S, vocab] float32 noise -log(-log(u)), u = ((word >> 9) + 0.5) / 2^23, of tokens first, first + 1, .. (first is
    a multiple of 4). 23 bits, because with 24 the largest u rounds to 1 in float32 and its noise to infinity.

    word is lane (token & 3) of Philox-4x32-10 (Salmon et al. 2011) with counter (token >> 2, position, choice, 0) and
    key (low, high) 32 bits of the seed: any backend and any shard of the vocabulary computes the same noise.
    """
    groups = -(-vocab // 4)
    rows = seeds.shape[0]
    counter = torch.zeros((4, rows, groups), dtype=torch.int64, device=seeds.device)
    counter[0] = torch.arange(first >> 2, (first >> 2) + groups, device=seeds.device)
    counter[1] = (positions & MASK32).unsqueeze(1)
    counter[2] = choices.long().unsqueeze(1)
    words = _philox(counter, (seeds & MASK32).unsqueeze(1), ((seeds >> 32) & MASK32).unsqueeze(1))
    uniform = ((words >> 9).float() + 0.5) * 2.0**-23
    noise = -torch.log(-torch.log(uniform))
    return noise.permute(1, 2, 0).reshape(rows, groups * 4)[:, :vocab]


def _philox(counter: torch.Tensor, key_low: torch.Tensor, key_high: torch.Tensor) -> torch.Tensor:
    """Philox-4x32-10 over counter [4, ...] (int64 holding 32-bit words); same shape out."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply_32(c0, PHILOX_MULTIPLIERS[0])
        high1, low1 = _multiply_32(c2, PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key_low, low1, high0 ^ c3 ^ key_high, low0
        key_low = (key_low + PHILOX_WEYL[0]) & MASK32
        key_high = (key_high + PHILOX_WEYL[1]) & MASK32
    return torch.stack((c0, c1, c2, c3))


def _multiply_32(value: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of value * multiplier, without overflowing a signed 64-bit product."""
    low = value * (multiplier & 0xFFFF)
    high = value * (multiplier >> 16) + (low >> 16)
    return (high >> 16) & MASK32, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
