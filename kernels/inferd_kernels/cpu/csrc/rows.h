// Ops on single rows: norms, SiLU, rotary embedding with the KV write, embedding lookup, block copies.
#pragma once
#include "matmul.h"

namespace inferd {
namespace {

inline float mean_square(const float* x, int64_t width) {
    F sum = zero();
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) sum = fma(load(x + i), load(x + i), sum);
    if (i < width) {
        const F rest = load_n(x + i, static_cast<int>(width - i));
        sum = fma(rest, rest, sum);
    }
    return reduce_add(sum) / static_cast<float>(width);
}

inline void rms_norm_row(const float* x, const float* weight, float* out, int64_t width, float eps) {
    const F factor = set1(1.0f / std::sqrt(mean_square(x, width) + eps));
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) store(out + i, mul(load(weight + i), mul(load(x + i), factor)));
    for (; i < width; i++) out[i] = weight[i] * (x[i] * first(factor));
}

inline void add_row(const float* a, const float* b, float* out, int64_t width) {
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) store(out + i, add(load(a + i), load(b + i)));
    for (; i < width; i++) out[i] = a[i] + b[i];
}

inline int64_t padded_floats(int64_t count) { return (count + 15) / 16 * 16; }

// x / (1 + e^(-slope x)).
inline F sigmoid_times(F x, float slope) { return div(x, add(set1(1.0f), exp(mul(x, set1(-slope))))); }

inline F error_function(F x) {
    alignas(64) float lanes[16];
    store(lanes, x);
    for (float& lane : lanes) lane = std::erf(lane);
    return load(lanes);
}

// Of a gate alone; the second operand of max and min wins where one is not a number.
template <int kind>
inline F activated(F x) {
    if constexpr (kind == kSilu) return div(x, add(set1(1.0f), exp(sub(zero(), x))));
    else if constexpr (kind == kRelu) return max(zero(), x);
    else if constexpr (kind == kRelu2) return mul(max(zero(), x), max(zero(), x));
    else if constexpr (kind == kGelu)
        return mul(mul(set1(0.5f), x), add(set1(1.0f), error_function(mul(x, set1(0.70710678f)))));
    else {
        // x (1 + tanh z) / 2 = x / (1 + e^(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3).
        const F cubic = fma(mul(mul(x, x), x), set1(0.044715f), x);
        return div(x, add(set1(1.0f), exp(mul(cubic, set1(-1.59576912f)))));
    }
}

template <int kind>
inline F gated(F gate, F up) {
    if constexpr (kind == kClampedSwiglu) {
        const F limit = set1(7.0f);  // and the slope: as gpt-oss was trained
        const F cut = min(limit, max(set1(-7.0f), up));
        return mul(add(cut, set1(1.0f)), sigmoid_times(min(limit, gate), 1.702f));
    } else {
        return mul(activated<kind>(gate), up);
    }
}

// `up` null: without a gate.
template <int kind>
void activate_row(const float* gate, const float* up, float* out, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) {
        const int lanes = static_cast<int>(smaller<int64_t>(16, width - i));
        const F x = load_n(gate + i, lanes);
        if (up) store_n(out + i, gated<kind>(x, load_n(up + i, lanes)), lanes);
        else if constexpr (kind != kClampedSwiglu) store_n(out + i, activated<kind>(x), lanes);
    }
}

using ActivateRow = void (*)(const float*, const float*, float*, int64_t);
constexpr ActivateRow kActivateRow[kActivations] = {
    activate_row<kSilu>, activate_row<kGelu>,  activate_row<kGeluTanh>,
    activate_row<kRelu>, activate_row<kRelu2>, activate_row<kClampedSwiglu>,
};

// Half-split rotation in place: pairs (i, i + half) of the first rotary_dim values.
inline void rotate_head(float* x, const float* cos_sin, int rotary_dim) {
    const int half = rotary_dim / 2;
    for (int i = 0; i < half; i += 16) {
        const int lanes = smaller(16, half - i);
        const F cos = load_n(cos_sin + i, lanes), sin = load_n(cos_sin + half + i, lanes);
        const F a = load_n(x + i, lanes), b = load_n(x + half + i, lanes);
        store_n(x + i, sub(mul(a, cos), mul(b, sin)), lanes);
        store_n(x + half + i, add(mul(b, cos), mul(a, sin)), lanes);
    }
}

constexpr int kMaxHeadDim = 1024;
constexpr float kScaleFloor = 0x1p-100f;  // a head of zeros is divided by a number

inline void store_cache(void* cache, int type, int64_t at, const float* x, int64_t count) {
    if (type == kCacheF32) {
        std::memcpy(static_cast<float*>(cache) + at, x, count * 4);
        return;
    }
    uint16_t* out = static_cast<uint16_t*>(cache) + at;
    for (int64_t i = 0; i < count; i += 16) {
        const int lanes = static_cast<int>(smaller<int64_t>(16, count - i));
        uint16_t halves[16];
        if (type == kCacheBF16) store_bf16(halves, load_n(x + i, lanes));
        else store_f16(halves, load_n(x + i, lanes));
        std::memcpy(out + i, halves, lanes * 2);
    }
}

// A head of `dim` values as 8-bit integers times their scale, the largest magnitude over 127.
inline void store_scaled(int8_t* out, float* scale, const float* x, int dim) {
    F largest = zero();
    for (int i = 0; i < dim; i += 16) largest = max(largest, abs(load_n(x + i, smaller(16, dim - i))));
    *scale = larger(reduce_max(largest) / 127.0f, kScaleFloor);
    for (int i = 0; i < dim; i += 16) {
        const int lanes = smaller(16, dim - i);
        const F value = div(load_n(x + i, lanes), set1(*scale));
        int8_t bytes[16];
        store_i8(bytes, to_int(min(max(value, set1(-127.0f)), set1(127.0f))));
        std::memcpy(out + i, bytes, lanes);
    }
}

// Head `index` of a cache: slot times KV heads plus head.
inline void store_head(void* cache, float* scales, int type, int64_t index, const float* x, int dim) {
    if (type == kCacheI8) store_scaled(static_cast<int8_t*>(cache) + index * dim, scales + index, x, dim);
    else store_cache(cache, type, index * dim, x, dim);
}

// The values of a row, `bytes` each, to places `step` values apart.
template <int bytes>
inline void spread(void* cache, int64_t at, int64_t step, const char* row, int dim) {
    char* out = static_cast<char*>(cache) + at * bytes;
    for (int d = 0; d < dim; d++) std::memcpy(out + d * step * bytes, row + d * bytes, bytes);
}

// Key head `head` of a slot.
inline void store_key(const Cache& cache, const AttentionShape& shape, int64_t slot, int head, const float* x) {
    const int64_t index = slot * shape.kv_heads + head;
    const int dim = shape.head_dim;
    if (!cache.keys_in_lanes) return store_head(cache.k, cache.k_scales, cache.type, index, x, dim);
    alignas(64) char row[kMaxHeadDim * 4];
    if (cache.type == kCacheI8) store_scaled(reinterpret_cast<int8_t*>(row), cache.k_scales + index, x, dim);
    else store_cache(row, cache.type, 0, x, dim);
    const int64_t at = (slot / cache.page * shape.kv_heads + head) * dim * cache.page + slot % cache.page;
    if (cache.type == kCacheF32) spread<4>(cache.k, at, cache.page, row, dim);
    else if (cache.type == kCacheI8) spread<1>(cache.k, at, cache.page, row, dim);
    else spread<2>(cache.k, at, cache.page, row, dim);
}

// One token: q rotated to its place, k and v written to the token's slot. `head` is scratch of head_dim floats.
inline void rope_kv_token(const RopeKvArgs& args, int64_t token, float* head) {
    const int dim = args.shape.head_dim, heads = args.shape.heads, kv_heads = args.shape.kv_heads;
    const float* qkv = args.qkv + token * (heads + 2 * kv_heads) * dim;
    const float* cos_sin = args.rope.cos_sin ? args.rope.cos_sin + args.batch->positions[token] * args.rope.rotary_dim
                                             : nullptr;
    const int64_t slot = args.batch->slots[token];
    for (int h = 0; h < heads + (slot < 0 ? 0 : kv_heads); h++) {
        const bool is_key = h >= heads;
        float* out = is_key ? head : args.q + (token * heads + h) * dim;
        const float* norm = is_key ? args.rope.k_norm : args.rope.q_norm;
        if (norm) rms_norm_row(qkv + h * dim, norm, out, dim, args.rope.norm_eps);
        else std::memcpy(out, qkv + h * dim, dim * 4);
        if (cos_sin) rotate_head(out, cos_sin, args.rope.rotary_dim);
        if (is_key) store_key(args.cache, args.shape, slot, h - heads, out);
    }
    for (int h = 0; slot >= 0 && h < kv_heads; h++) {
        const float* values = qkv + (heads + kv_heads + h) * dim;
        store_head(args.cache.v, args.cache.v_scales, args.cache.type, slot * kv_heads + h, values, dim);
    }
}

inline void rope_kv_phase(Team& team, const RopeKvArgs& args) {
    alignas(64) float head[kMaxHeadDim];
    team_for(team, args.batch->tokens, [&](int64_t token) { rope_kv_token(args, token, head); });
}

// Value i of row `row` of a packed weight, exactly as `linear` sees it.
template <int format>
void unpack_row(const Weight& w, int64_t row, float* out) {
    constexpr Layout layout = kLayouts[format];
    const uint8_t* panel = w.data + row / kLanes * panel_bytes(format, w.k);
    const int lane = static_cast<int>(row % kLanes);
    if constexpr (layout.scales == Scales::kNone) {
        for (int64_t i = 0; i < w.k; i++) {
            alignas(64) float lanes[16];
            if constexpr (format == F32) lanes[lane] = reinterpret_cast<const float*>(panel)[i * kLanes + lane];
            else store(lanes, load_bf16(reinterpret_cast<const uint16_t*>(panel) + i * kLanes));
            out[i] = lanes[lane];
        }
        return;
    } else {
        const uint8_t* record = panel + records_at(layout.scales, w.k / kGroup);
        for (int64_t g = 0; g < w.k / kGroup; g++, record += 64 * layout.bits) {
            U quads[8];
            F scale = zero(), second = zero();
            alignas(64) float scales[16], seconds[16];
            alignas(64) uint8_t bytes[8][64];
            unpack<layout.bits, 0, 8>(record, quads);
            std::memcpy(bytes, quads, sizeof bytes);
            load_scales<layout.scales>(panel, g, scale, second);
            store(scales, scale);
            store(seconds, second);
            for (int i = 0; i < kGroup; i++) {
                const int value = bytes[i / 4][4 * lane + i % 4] - layout.offset;
                const bool other = layout.scales == Scales::kSuper16 && i >= 16;
                const bool minimum = layout.scales == Scales::kAsymmetric || layout.scales == Scales::kSuper;
                out[g * kGroup + i] = static_cast<float>(value) * (other ? seconds : scales)[lane] +
                                      (minimum ? seconds[lane] : 0.0f);
            }
        }
    }
}

using UnpackRow = void (*)(const Weight&, int64_t, float*);
constexpr UnpackRow kUnpackRow[kFormats] = {
    unpack_row<F32>,  unpack_row<BF16>, unpack_row<Q4_0>, unpack_row<Q4_1>, unpack_row<Q5_0>,
    unpack_row<Q5_1>, unpack_row<Q8_0>, unpack_row<Q4_K>, unpack_row<Q5_K>, unpack_row<Q6_K>,
};

inline void embedding_body(Team& team, void* context) {
    const EmbeddingArgs& args = *static_cast<const EmbeddingArgs*>(context);
    const Weight& w = *args.weight;
    team_for(team, args.rows, [&](int64_t i) { kUnpackRow[w.format](w, args.ids[i], args.out + i * w.k); });
}

inline int embedding(Engine* engine, const EmbeddingArgs& args) {
    for (int64_t i = 0; i < args.rows; i++)
        if (args.ids[i] < 0 || args.ids[i] >= args.weight->n) return kOutOfRange;
    engine_run(engine, embedding_body, const_cast<EmbeddingArgs*>(&args));
    return 0;
}

inline void norm_body(Team& team, void* context) {
    const NormArgs& args = *static_cast<const NormArgs*>(context);
    team_for(team, args.rows, [&](int64_t i) {
        const int64_t at = i * args.width;
        const float* x = args.x + at;
        if (args.residual) {
            add_row(args.residual + at, x, args.hidden + at, args.width);
            x = args.hidden + at;
        }
        rms_norm_row(x, args.weight, args.normed + at, args.width, args.eps);
    });
}

inline void activate_body(Team& team, void* context) {
    const ActivateArgs& args = *static_cast<const ActivateArgs*>(context);
    team_for(team, args.rows, [&](int64_t i) {
        const float* x = args.x + i * args.width * (args.gated ? 2 : 1);
        kActivateRow[args.activation](x, args.gated ? x + args.width : nullptr, args.out + i * args.width, args.width);
    });
}

inline void rope_kv_body(Team& team, void* context) { rope_kv_phase(team, *static_cast<const RopeKvArgs*>(context)); }

inline void copy_body(Team& team, void* context) {
    const CopyArgs& args = *static_cast<const CopyArgs*>(context);
    team_for(team, args.pairs, [&](int64_t i) {
        std::memcpy(args.cache + args.destinations[i] * args.block_bytes,
                    args.cache + args.sources[i] * args.block_bytes, args.block_bytes);
    });
}

inline int copy_blocks(Engine* engine, const CopyArgs& args) {
    for (int64_t i = 0; i < args.pairs; i++) {
        const int64_t from = args.sources[i], to = args.destinations[i];
        if (from < 0 || from >= args.blocks || to < 0 || to >= args.blocks) return kOutOfRange;
    }
    engine_run(engine, copy_body, const_cast<CopyArgs*>(&args));
    return 0;
}

// A job without scratch.
template <class Args, Body body>
int run(Engine* engine, const Args& args) {
    engine_run(engine, body, const_cast<Args*>(&args));
    return 0;
}

}  // namespace
}  // namespace inferd
