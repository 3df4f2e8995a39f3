"""The torch reference of every op: the definition the other backends are tested against, and the portable path.

One class holds all ops: a method's signature, shapes, formula and source stand in one place. A backend subclasses it
and overrides the methods it is faster at, to the same results within its arithmetic's rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import FunctionType

import torch
import torch.nn.functional as F

from inferd_kernels.operands import (
    Activation,
    Attention,
    AttentionShape,
    DecoderLayer,
    ExpertWeights,
    LatentCache,
    PagedBatch,
    Rope,
    Routes,
    SamplingBatch,
    Stack,
)
from inferd_kernels.weights import Fp8Weight, QuantizedWeight, Weight, WeightRows, concatenate

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF
SCALE_FLOOR = 2.0**-100  # a row of zeros is divided by a number, and stays zero
LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702  # of clamped_swiglu, as gpt-oss was trained


class Ops:
    """Every op. A row's result does not depend on its neighbours in the batch, except in torch's own matmuls.

    A backend without an op of its own inherits it from here; `backends` tells which it has.
    """

    label = "reference"
    # The backend computes on threads of its own: torch's would only spin beside them.
    has_threads = False
    # `pack_rows` holds no more than a block of a matrix beside the result, so loading in blocks saves memory.
    packs_blocks = False

    @property
    def backends(self) -> Mapping[str, str]:
        """The label of the class that computes each op, by the op's name."""
        names = [name for name, value in vars(Ops).items() if isinstance(value, FunctionType)]
        owners = {name: next(kind for kind in type(self).__mro__ if name in vars(kind)) for name in names}
        return {
            name: self.label if owner is type(self) else owner.label
            for name, owner in owners.items()
            if issubclass(owner, Ops)
        }

    @property
    def cache_dtypes(self) -> tuple[torch.dtype, ...]:
        """Of KV caches that rope_kv_write and paged_attention take."""
        return (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8)

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Of weights at load, that linear and embedding compute on; the reference computes on them as floats."""
        return ("q4", "q8", "fp8")

    # Weights, once at load

    def prepare_weight(self, weight: Weight, dtype: torch.dtype = torch.float32) -> Weight:
        """A matrix [N,K] in the layout that `linear` and `embedding` of this backend read.

        Here: dequantized to `dtype`, for torch has no matmul over ggml blocks. Float tensors pass unchanged.
        """
        if isinstance(weight, Fp8Weight):
            return dequantize_fp8(weight, dtype)
        return dequantize(weight, dtype) if isinstance(weight, QuantizedWeight) else weight

    def pack_rows(self, rows: WeightRows, dtype: torch.dtype = torch.float32) -> Weight:
        """prepare_weight of a matrix [N,K] that comes in blocks of rows. Here: of the blocks, concatenated."""
        return self.prepare_weight(concatenate(list(rows.blocks)), dtype)

    def prepare_experts(
        self,
        gate_up: Iterable[Weight],
        down: Iterable[Weight],
        activation: Activation,
        biases: tuple[torch.Tensor, torch.Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ExpertWeights:
        """The experts of a layer in the layout that `experts` reads. Each matrix is taken from its iterable once.

        gate_up per expert [2I,E], down per expert [E,I], as for prepare_weight; biases: gate_up's [n,2I], down's [n,E].
        """
        first, second = (tuple(self.prepare_weight(weight, dtype) for weight in part) for part in (gate_up, down))
        assert len(first) == len(second), f"{len(first)} experts have gate_up, {len(second)} down"
        gate_up_bias, down_bias = biases or (None, None)
        return ExpertWeights(first, second, gate_up_bias, down_bias, activation)

    def key_cache(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A K cache of `shape` [blocks,P,Hk,D], not initialized, in the order of memory this backend reads fastest.

        Strides are no part of an op's contract: every op takes both orders.
        """
        return torch.empty(shape, dtype=dtype, device=device)

    # Memory to work in

    def attention_bytes(self, heads: int, kv_heads: int, head_dim: int) -> int:
        """The most memory that paged_attention keeps to work in, beside its operands and result. Here: none."""
        return 0

    def release(self) -> None:
        """Give back what ops keep to work in; the next ones take it again."""

    # Matrices and rows

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [T,K] @ weight [N,K]^T + bias [N] -> [T,N], the weight from prepare_weight."""
        assert isinstance(weight, torch.Tensor), "torch multiplies with float weights"
        return F.linear(x, weight, bias)

    def embedding(self, ids: torch.Tensor, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
        """Rows `ids` [T] int64 of weight [V,E], from prepare_weight, -> [T,E] in `dtype`."""
        assert isinstance(weight, torch.Tensor), "torch looks up float weights"
        return F.embedding(ids, weight).to(dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 (Zhang & Sennrich 2019).

        The normalized value is rounded to x.dtype before the product, as Llama checkpoints were trained.
        """
        values = x.float()
        normed = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
        return weight * normed.to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h = residual + x rounded to storage; (rms_norm(h), h)."""
        hidden = residual + x
        return self.rms_norm(hidden, weight, eps), hidden

    def add_layer_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias over the last dimension, h = residual + x, in float32
        (Ba et al. 2016)."""
        hidden = x if residual is None else residual + x
        normed = F.layer_norm(hidden.float(), hidden.shape[-1:], weight.float(), bias.float(), eps)
        return normed.to(x.dtype)

    def activate(self, x: torch.Tensor, name: Activation) -> torch.Tensor:
        """f(x) for x [T,I]: silu x / (1 + e^-x); gelu x Phi(x) by the error function; gelu_tanh its tanh approximation
        (Hendrycks & Gimpel 2016); relu max(x, 0); relu2 its square (So et al. 2021).

        Raises ValueError for clamped_swiglu, which needs a gate.
        """
        if name == "silu":
            return F.silu(x)
        if name == "relu":
            return F.relu(x)
        if name == "relu2":
            return F.relu(x).square()
        if name in ("gelu", "gelu_tanh"):
            return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
        raise ValueError(f"activation {name!r} does not work without a gate")

    def activate_gated(self, gate_up: torch.Tensor, name: Activation) -> torch.Tensor:
        """f(gate) * up for gate_up [T,2I] = gate | up -> [T,I] (Shazeer 2020), f as in `activate`.

        clamped_swiglu (gpt-oss): x = min(gate, 7), u = up in [-7, 7], result (u + 1) x / (1 + e^(-1.702 x)).
        """
        gate, up = gate_up.chunk(2, dim=-1)
        if name != "clamped_swiglu":
            return self.activate(gate, name) * up
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1) * (gate * torch.sigmoid(gate * SWIGLU_ALPHA))

    # Experts

    def route(self, logits: torch.Tensor, top_k: int, renormalize: bool) -> Routes:
        """The top_k experts of each token by the softmax of router logits [T,n], largest first, ties to the lowest one.

        renormalize: the weights of a token sum to 1 (Mixtral, Qwen3-MoE); else they are the softmax over all experts.
        """
        masses = logits.float().softmax(-1)
        ids = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
        weights = masses.gather(1, ids)
        return Routes(ids.int(), weights / weights.sum(-1, keepdim=True) if renormalize else weights)

    def experts(self, x: torch.Tensor, weights: ExpertWeights, routes: Routes) -> torch.Tensor:
        """y = sum over the k choices of weight * (down[e] activate_gated(gate_up[e] x + b) + c), x [T,E] -> [T,E].

        b and c are the biases of expert e, if any (Shazeer et al. 2017). The sum is in float32, in the order of the
        choices. Raises IndexError for an expert that is not there.
        """
        parts = torch.zeros((*routes.ids.shape, x.shape[1]), dtype=torch.float32, device=x.device)
        for index in routes.ids.unique().tolist():
            if not 0 <= index < len(weights.down):
                raise IndexError(f"expert {index} of {len(weights.down)}")
            tokens, choices = (routes.ids == index).nonzero(as_tuple=True)
            first, second = (
                None if bias is None else bias[index].to(x.dtype) for bias in (weights.gate_up_bias, weights.down_bias)
            )
            inner = self.linear(x[tokens], weights.gate_up[index], first)
            out = self.linear(self.activate_gated(inner, weights.activation), weights.down[index], second)
            parts[tokens, choices] = out.float()
        return (parts * routes.weights.unsqueeze(-1)).sum(1).to(x.dtype)

    # Attention

    def rope_kv_write(self, qkv: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        """Split qkv [T,(Hq+2Hk)D], norm and rotate q and k, write k and v at batch.slots; returns q [T,Hq,D].

        A cache with scales is fp8 e4m3 or int8, quantized per token and KV head.
        """
        shape, cache, norm = attention.shape, attention.cache, attention.qk_norm
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        q, k, v = qkv.view(-1, heads + 2 * kv_heads, dim).split((heads, kv_heads, kv_heads), dim=1)
        if norm is not None:
            q, k = self.rms_norm(q, norm.q_weight, norm.eps), self.rms_norm(k, norm.k_weight, norm.eps)
        if attention.rope is not None:
            q, k = rotate(q, attention.rope, batch.positions), rotate(k, attention.rope, batch.positions)
        kept = batch.slots >= 0
        slots = batch.slots[kept]
        places = slots // cache.k.shape[1], slots % cache.k.shape[1]
        for side, (held, rows) in enumerate(((cache.k, k[kept]), (cache.v, v[kept]))):
            if cache.scales is None:
                held[places] = rows.to(held.dtype)
            else:
                values, scale = quantize_rows(rows, held.dtype)
                _bytes(held)[places] = _bytes(values)
                cache.scales[side][places] = scale
        return q

    def paged_attention(self, q: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        """Causal attention of q [T,Hq,D] over each sequence's pages -> [T,Hq,D].

        Query row r of sequence i sits at position p = batch.positions[r] and sees keys j with p - window < j <= p.
        softmax(cap tanh(scale q k / cap)) v, with a cap (Gemma 2); a head's sink adds e^sink to the denominator.
        Rows of a sequence without context are 0.
        """
        out = torch.empty_like(q)
        starts, cache = batch.cu_seqlens.tolist(), attention.cache
        page = cache.k.shape[1]
        k_scale, v_scale = cache.scales or (None, None)
        for index, seq_len in enumerate(batch.seq_lens.tolist()):
            rows = slice(starts[index], starts[index + 1])
            if rows.start == rows.stop:
                continue
            if seq_len == 0:  # a padded row of a decode batch
                out[rows] = 0
                continue
            # Blocks before the window may hold anything, NaN included, so they are not read.
            window, length = attention.shape.window, rows.stop - rows.start
            first = max(seq_len - length - window + 1, 0) if window else 0
            blocks = batch.block_tables[index, first // page : -(-seq_len // page)].long()
            span = slice(first % page, seq_len - first // page * page)
            keys = _gather(cache.k, k_scale, blocks, span).to(q.dtype)
            values = _gather(cache.v, v_scale, blocks, span).to(q.dtype)
            out[rows] = _attend(q[rows], keys, values, seq_len - first, attention.shape, attention.sinks)
        return out

    def self_attention(self, qkv: torch.Tensor, cu_seqlens: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
        """Attention of packed sequences over themselves, in both directions, without a cache -> [T,Hq,D].

        Sequence i is the rows cu_seqlens[i]:cu_seqlens[i+1] of qkv [T,(Hq+2Hk)D].
        """
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        q, k, v = qkv.view(-1, heads + 2 * kv_heads, dim).transpose(0, 1).split((heads, kv_heads, kv_heads))
        out = qkv.new_empty((qkv.shape[0], heads, dim))
        starts = cu_seqlens.tolist()
        for start, end in pairwise(starts):
            query, keys, values = (part[None, :, start:end] for part in (q, k, v))
            attended = F.scaled_dot_product_attention(
                query, keys, values, scale=shape.scale, enable_gqa=heads != kv_heads
            )
            out[start:end] = attended[0].transpose(0, 1)
        return out

    # Latent attention

    def rotate(self, x: torch.Tensor, rope: Rope, positions: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of x [T,H,D] at positions [T], half-split form (Su et al. 2021), in float32."""
        return rotate(x, rope, positions)

    def write_latents(self, rows: torch.Tensor, cache: LatentCache, batch: PagedBatch) -> None:
        """Rows [T,size] into `cache` at batch.slots; -1 writes nothing."""
        kept = batch.slots >= 0
        slots, page = batch.slots[kept], cache.latents.shape[1]
        cache.latents[slots // page, slots % page] = rows[kept].to(cache.latents.dtype)

    def latent_attention(
        self, q: torch.Tensor, cache: LatentCache, batch: PagedBatch, rank: int, scale: float
    ) -> torch.Tensor:
        """Causal attention of q [T,H,D] over the cached vectors [D] of each sequence, which are one key for all heads
        and whose first `rank` values are its value (the absorbed form of DeepSeek-V2's latent attention, 2024)
        -> [T,H,rank]."""
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

    def decoder_stack(self, layers: Sequence[DecoderLayer], eps: float) -> Stack | None:
        """All layers in one call: run(hidden [T,E] float32, batch) -> [T,E], embeddings in, the residual stream before
        the final norm out, over hidden where it is contiguous.

        None where the backend has no such call for these layers: then the caller goes op by op.
        """
        return None

    # Caches and logits

    def copy_blocks(self, cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        """cache[destinations[i]] = cache[sources[i]], all at the same time: no destination is a source, nor a second
        time a destination."""
        cache = _bytes(cache) if cache.element_size() == 1 else cache
        cache[destinations] = cache[sources]

    def penalize(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        counts: torch.Tensor,
        repetition: torch.Tensor,
        presence: torch.Tensor,
        frequency: torch.Tensor,
    ) -> None:
        """In place on rows [R] int32 of logits [S,V] float32, at tokens [R,L] int32 (distinct in a row, -1 pads).

        l' = (l / repetition if l > 0 else l * repetition) - frequency * count - presence * [count > 0] (Keskar et al.
        2019; OpenAI), counts [R,L] int32 occurrences in the output: 0 is a token of the prompt alone. Penalties [R]
        float32.
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

    def mask_tokens(self, logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
        """In place: -inf in rows [R] int32 of logits [S,V] where bit token % 32 of bits [R, ceil(V/32)] int32, word
        token // 32, is 0."""
        spread = bits.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=bits.device) & 1
        refused = spread.flatten(1)[:, : logits.shape[1]] == 0
        logits[rows.long()] = logits[rows.long()].masked_fill(refused, float("-inf"))

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
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


def rotate(x: torch.Tensor, rope: Rope, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [T,H,D] at positions [T], half-split form (Su et al. 2021), in float32."""
    half = rope.rotary_dim // 2
    cos, sin = rope.cos_sin[positions].unsqueeze(1).split(half, dim=-1)
    values = x.float()
    first, second, rest = values.split((half, half, x.shape[-1] - rope.rotary_dim), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)


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


def _gather(cache: torch.Tensor, scale: torch.Tensor | None, blocks: torch.Tensor, span: slice) -> torch.Tensor:
    """Rows `span` [n,Hk,D] of the pages `blocks`, one after another; float32 from an 8-bit cache."""
    if scale is None:
        return cache[blocks].flatten(0, 1)[span]
    values = _bytes(cache)[blocks].view(cache.dtype).flatten(0, 1)[span]
    return values.float() * scale[blocks].flatten(0, 1)[span].unsqueeze(-1)


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seq_len: int,
    shape: AttentionShape,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last q.shape[0] positions of one sequence against its keys and values [seq_len,Hk,D]."""
    length = q.shape[0]
    query = q.transpose(0, 1).unsqueeze(0)
    keys, values = keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)
    if shape.softcap or sinks is not None:
        mask = _mask(length, seq_len, shape.window, q.device)
        return _attend_scores(query, keys, values, shape, sinks, mask)
    sees_all = length == 1 and not shape.window
    visible = None if sees_all else _mask(length, seq_len, shape.window, q.device)
    gqa = shape.num_heads != shape.num_kv_heads
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=shape.scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def _mask(length: int, seq_len: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, seq_len] True where the query may look."""
    rows = torch.arange(seq_len - length, seq_len, device=device).unsqueeze(1)
    columns = torch.arange(seq_len, device=device).unsqueeze(0)
    mask = columns <= rows
    return mask & (columns > rows - window) if window else mask


def _attend_scores(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    shape: AttentionShape,
    sinks: torch.Tensor | None,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Attention with what torch's own has not: a cap on the scores, and sinks beside them."""
    group = shape.num_heads // shape.num_kv_heads
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = query.float() @ keys.float().transpose(-1, -2) * shape.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        beside = sinks.float().view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        weights = torch.cat((scores, beside), -1).softmax(-1)[..., :-1]
    return (weights.to(values.dtype) @ values)[0].transpose(0, 1)


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
