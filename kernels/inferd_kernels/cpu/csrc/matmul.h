// y [rows, n] = activations [rows, k] times a packed weight. One arithmetic for every number of rows: lane n of row m
// sums its groups along K in order, whatever tile it is computed in.
#pragma once
#include "activations.h"

namespace inferd {
namespace {

// Quads 4 half .. 4 half + 3 get the bits above their nibbles.
template <int bits, int half>
[[gnu::always_inline]] inline void add_upper_bits(U plane, U quads[4]) {
    if constexpr (bits == 6) {
        quads[0] = or_bytes(quads[0], and_bytes(shift_left<4>(plane), 0x30));
        quads[1] = or_bytes(quads[1], and_bytes(shift_left<2>(plane), 0x30));
        quads[2] = or_bytes(quads[2], and_bytes(plane, 0x30));
        quads[3] = or_bytes(quads[3], and_bytes(shift_right<2>(plane), 0x30));
    } else if constexpr (half == 0) {
        quads[0] = or_bytes(quads[0], and_bytes(shift_left<4>(plane), 0x10));
        quads[1] = or_bytes(quads[1], and_bytes(shift_left<3>(plane), 0x10));
        quads[2] = or_bytes(quads[2], and_bytes(shift_left<2>(plane), 0x10));
        quads[3] = or_bytes(quads[3], and_bytes(shift_left<1>(plane), 0x10));
    } else {
        quads[0] = or_bytes(quads[0], and_bytes(plane, 0x10));
        quads[1] = or_bytes(quads[1], and_bytes(shift_right<1>(plane), 0x10));
        quads[2] = or_bytes(quads[2], and_bytes(shift_right<2>(plane), 0x10));
        quads[3] = or_bytes(quads[3], and_bytes(shift_right<3>(plane), 0x10));
    }
}

// Quads first .. first + count - 1 of a record, a byte per value.
template <int bits, int first, int count>
[[gnu::always_inline]] inline void unpack(const uint8_t* record, U quads[count]) {
    static_assert(first / 4 == (first + count - 1) / 4 || count == 8, "quads of one half, or all");
    if constexpr (count == 8) {
        unpack<bits, 0, 4>(record, quads);
        unpack<bits, 4, 4>(record, quads + 4);
    } else {
        constexpr int half = first / 4;
        for (int v = 0; v < count; v++) {
            const int q = first + v;
            if constexpr (bits == 8) quads[v] = load_bytes(record + 64 * q);
            else if constexpr (half == 0) quads[v] = and_bytes(load_bytes(record + 64 * q), 0x0F);
            else quads[v] = and_bytes(shift_right<4>(load_bytes(record + 64 * (q - 4))), 0x0F);
        }
        if constexpr (bits == 5 || bits == 6) {
            static_assert(count == 4, "upper bits are added to four quads");
            const U plane = load_bytes(record + 256 + (bits == 6 ? 64 * half : 0));
            add_upper_bits<bits, half>(plane, quads);
        }
    }
}

// The scale (and minimum, or the second half's scale) of group g for the panel's 16 rows.
template <Scales kind>
inline void load_scales(const uint8_t* panel, int64_t g, F& scale, F& second) {
    if constexpr (kind == Scales::kSymmetric) {
        scale = load_f16(reinterpret_cast<const uint16_t*>(panel + 32 * g));
    } else if constexpr (kind == Scales::kAsymmetric) {
        scale = load_f16(reinterpret_cast<const uint16_t*>(panel + 64 * g));
        second = load_f16(reinterpret_cast<const uint16_t*>(panel + 64 * g + 32));
    } else if constexpr (kind == Scales::kSuper) {
        const uint8_t* super = panel + (g >> 3) * (64 + 8 * 32);
        const uint8_t* group = super + 64 + (g & 7) * 32;
        scale = mul(load_f16(reinterpret_cast<const uint16_t*>(super)), load_u8(group));
        second = mul(load_f16(reinterpret_cast<const uint16_t*>(super + 32)), sub(zero(), load_u8(group + 16)));
    } else {
        const uint8_t* super = panel + (g >> 3) * (32 + 8 * 32);
        const uint8_t* group = super + 32 + (g & 7) * 32;
        const F d = load_f16(reinterpret_cast<const uint16_t*>(super));
        scale = mul(d, load_i8(group));
        second = mul(d, load_i8(group + 16));
    }
}

// Products of quads first .. first + count - 1 with each row at q: use(row, sums).
template <int format, int first, int count, class Use>
[[gnu::always_inline]] inline void multiply_quads(const uint8_t* record, const int8_t* q, int rows, const Use& use) {
    constexpr Layout layout = kLayouts[format];
    U quads[count];
    unpack<layout.bits, first, count>(record, quads);
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        const int8_t* x = q + r * integer_bytes(layout);
        if constexpr (layout.wide()) use(r, dot_quads_wide<count>(quads, x, first));
        else use(r, dot_quads<layout.bits, count>(quads, x + 4 * first));
    }
}

// Sums of the whole group for each row: use(row, lane sums). Where not all quads are multiplied at once, `sums` keeps
// what the first of them gave.
template <int format, class Use, int first = 0>
[[gnu::always_inline]] inline void multiply_group(const uint8_t* record, const int8_t* q, int rows, I* sums,
                                                  const Use& use) {
    constexpr Layout layout = kLayouts[format];
    constexpr int bits = layout.bits, count = layout.wide() ? kWideQuads : kQuads;
    constexpr bool is_last = first + count == 8;
    const auto so_far = [&](int r, I dots) {
        if constexpr (first == 0) return dots;
        else return add_dots<bits>(sums[r], dots);
    };
    multiply_quads<format, first, count>(record, q, rows, [&](int r, I dots) {
        if constexpr (is_last) use(r, lane_sums<bits>(so_far(r, dots)));
        else sums[r] = so_far(r, dots);
    });
    if constexpr (!is_last) multiply_group<format, Use, first + count>(record, q, rows, sums, use);
}

// What the groups of a block's rows are scaled by, and their offsets.
struct GroupScales {
    const float* x;
    const int32_t* offsets[2];  // of its halves, or of all of it
    F weight, second;  // as load_scales gives them
};

// total + the products of a group, or of its first or second half.
template <int format, int half = 0>
inline F add_products(F total, I products, const GroupScales& scales, int r) {
    constexpr Layout layout = kLayouts[format];
    if constexpr (!has_minimum(layout)) products = add_i32(products, set1_i32(scales.offsets[half][r]));
    total = fma(to_float(products), mul(half == 0 ? scales.weight : scales.second, set1(scales.x[r])), total);
    if constexpr (has_minimum(layout)) {
        float weighted;
        std::memcpy(&weighted, scales.offsets[0] + r, 4);
        total = fma(scales.second, set1(weighted), total);
    }
    return total;
}

// One panel times `count` rows, the first of which is `row` of `block`; `single`: times one, whose sums stay in registers.
template <int format, bool single>
inline void tile_quantized(const uint8_t* panel, int64_t panel_size, const Activations& x, const char* block,
                           int64_t row, int count, F* out) {
    constexpr Layout layout = kLayouts[format];
    const int rows = single ? 1 : count;
    const int64_t groups = x.k / kGroup, stride = x.block_rows * group_bytes(layout);
    const uint8_t* record = panel + records_at(layout.scales, groups);
    const int8_t* q = reinterpret_cast<const int8_t*>(block) + row * integer_bytes(layout);
    const char* scales_of_group = block + x.block_rows * integer_bytes(layout) + row * 4;
    // Few rows are bound by the weights' bytes: ask for the next panel, line by line, while this one is computed.
    constexpr int lines_per_group = layout.bits + 1;  // its record, and at most 64 bytes of scales
    const uint8_t* ahead = panel + panel_size;
    I sums[single ? 1 : kTileRows];
    F totals[single ? 1 : kTileRows];
    for (int r = 0; r < rows; r++) totals[r] = zero();
    for (int64_t g = 0; g < groups; g++, record += 64 * layout.bits, q += stride, scales_of_group += stride) {
#pragma GCC unroll 16
        for (int line = 0; line < lines_per_group; line++, ahead += 64) __builtin_prefetch(ahead);
        const int32_t* offsets = reinterpret_cast<const int32_t*>(scales_of_group) + x.block_rows;
        GroupScales scales{};
        scales.x = reinterpret_cast<const float*>(scales_of_group);
        scales.offsets[0] = offsets;
        scales.offsets[1] = offsets + x.block_rows;
        if (!single) load_scales<layout.scales>(panel, g, scales.weight, scales.second);
        const auto add = [&](int r, I products) {
            // One row needs them once: late, when registers are free.
            if (single) load_scales<layout.scales>(panel, g, scales.weight, scales.second);
            totals[r] = add_products<format>(totals[r], products, scales, r);
        };
        if constexpr (layout.scales == Scales::kSuper16) {
            multiply_quads<format, 0, 4>(record, q, rows, [&](int r, I dots) { add(r, lane_sums<layout.bits>(dots)); });
            multiply_quads<format, 4, 4>(record, q, rows, [&](int r, I dots) {
                totals[r] = add_products<format, 1>(totals[r], lane_sums<layout.bits>(dots), scales, r);
            });
        } else {
            multiply_group<format>(record, q, rows, sums, add);
        }
    }
    for (int r = 0; r < rows; r++) out[r] = totals[r];
}

// Float tiles span several panels: each broadcast of an activation then feeds as many products.
template <int format, int rows, int panels>
inline void tile_float(const uint8_t* panel, const float* x, int64_t block_rows, int64_t k, F sums[panels][rows]) {
    constexpr int64_t value_bytes = format == F32 ? 4 : 2;
    const int64_t stride = panel_bytes(format, k);
    F totals[panels][rows];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = zero();
    for (int64_t i = 0; i < k; i++, x += block_rows, panel += kLanes * value_bytes) {
        F weights[panels];
        for (int p = 0; p < panels; p++) {
            if constexpr (format == F32) weights[p] = load(reinterpret_cast<const float*>(panel + p * stride));
            else weights[p] = load_bf16(reinterpret_cast<const uint16_t*>(panel + p * stride));
        }
        __builtin_prefetch(x + 16 * block_rows);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const F value = set1(x[r]);
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) totals[p][r] = fma(weights[p], value, totals[p][r]);
        }
    }
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) sums[p][r] = totals[p][r];
}

// Where products go: row r to y + r * stride.
struct Output {
    float* y;
    int64_t stride;
    const float* bias;  // or null
};

// Columns n0 .. n0 + 15 of `rows` rows from `row`.
inline void store_sums(const F* sums, const Weight& w, int64_t n0, int64_t row, int rows, const Output& out) {
    const int lanes = static_cast<int>(smaller<int64_t>(kLanes, w.n - n0));
    const F shift = out.bias ? load_n(out.bias + n0, lanes) : zero();
    for (int r = 0; r < rows; r++) {
        float* y = out.y + (row + r) * out.stride + n0;
        store_n(y, out.bias ? add(sums[r], shift) : sums[r], lanes);
    }
}

// Panels against rows [first, last) of one block of activations. The block stays in the first-level cache while the
// panels stream by: each of its lines is read by many broadcasts, which are slow (replayed) while a line is on its way.
template <int format>
void block_panels_quantized(const Weight& w, int64_t first_panel, int64_t last_panel, const Activations& x,
                            int64_t first, int64_t last, const Output& out) {
    const char* block = x.blocks + first / x.block_rows * x.block_stride;
    const int64_t in_block = first % x.block_rows;
    const int rows = static_cast<int>(last - first);
    const int64_t size = panel_bytes(format, w.k);
    const uint8_t* panel = w.data + first_panel * size;
    F sums[kTileRows];
    for (int64_t p = first_panel; p < last_panel; p++, panel += size) {
        if (rows == 1) tile_quantized<format, true>(panel, size, x, block, in_block, 1, sums);
        else tile_quantized<format, false>(panel, size, x, block, in_block, rows, sums);
        store_sums(sums, w, p * kLanes, first, rows, out);
    }
}

template <int format, int rows, int panels>
void tile(const Weight& w, int64_t p, const Activations& x, int64_t row, const Output& out) {
    const uint8_t* panel = w.data + p * panel_bytes(format, w.k);
    const float* block = reinterpret_cast<const float*>(x.blocks + row / x.block_rows * x.block_stride);
    F sums[panels][rows];
    tile_float<format, rows, panels>(panel, block + row % x.block_rows, x.block_rows, x.k, sums);
    for (int i = 0; i < panels; i++) store_sums(sums[i], w, (p + i) * kLanes, row, rows, out);
}

// The same for float weights: wide tiles first; a row's arithmetic is the same in all of them.
template <int format>
void block_panels_float(const Weight& w, int64_t first_panel, int64_t last_panel, const Activations& x, int64_t first,
                        int64_t last, const Output& out) {
    for (int64_t p = first_panel, step; p < last_panel; p += step) {
        int64_t row = first;
        step = p + kFloatPanels <= last_panel ? kFloatPanels : 1;
        if (step == kFloatPanels)
            for (; row + kFloatRows <= last; row += kFloatRows)
                tile<format, kFloatRows, kFloatPanels>(w, p, x, row, out);
        if constexpr (kFloatRows > 4)
            for (; row + 4 <= last; row += 4)
                for (int64_t i = p; i < p + step; i++) tile<format, 4, 1>(w, i, x, row, out);
        for (; row < last; row++)
            for (int64_t i = p; i < p + step; i++) tile<format, 1, 1>(w, i, x, row, out);
    }
}

using BlockPanels = void (*)(const Weight&, int64_t, int64_t, const Activations&, int64_t, int64_t, const Output&);

constexpr BlockPanels kBlockPanels[kFormats] = {
    block_panels_float<F32>,      block_panels_float<BF16>,     block_panels_quantized<Q4_0>,
    block_panels_quantized<Q4_1>, block_panels_quantized<Q5_0>, block_panels_quantized<Q5_1>,
    block_panels_quantized<Q8_0>, block_panels_quantized<Q4_K>, block_panels_quantized<Q5_K>,
    block_panels_quantized<Q6_K>,
};

// One phase of the team: all rows of x against w. Activations of a chunk of rows stay in the second-level cache.
inline void matmul_phase(Team& team, const Weight& w, const Activations& x, int64_t rows, const Output& out) {
    constexpr int64_t kRowChunk = 256;
    const int64_t panels = (w.n + kLanes - 1) / kLanes;
    const int64_t row_chunks = (rows + kRowChunk - 1) / kRowChunk;
    // A thread's last chunk is what the others wait for; few rows are done sooner, and stream better in long chunks.
    const int64_t chunks_per_thread = rows < 8 ? 8 : 16;
    const int64_t width = larger<int64_t>(1, smaller<int64_t>(15, panels / (chunks_per_thread * team.size)));
    const int64_t chunks = (panels + width - 1) / width;
    team_for(team, chunks * row_chunks, [&](int64_t c) {
        const int64_t first_panel = c % chunks * width, last_panel = smaller(panels, first_panel + width);
        const int64_t last = smaller(rows, (c / chunks + 1) * kRowChunk);
        for (int64_t row = c / chunks * kRowChunk; row < last; row += x.block_rows)
            kBlockPanels[w.format](w, first_panel, last_panel, x, row, smaller(last, row + x.block_rows), out);
    });
}

struct LinearJob {
    const LinearArgs& args;
    Activations x;
};

inline void linear_body(Team& team, void* context) {
    const LinearJob& job = *static_cast<const LinearJob*>(context);
    const LinearArgs& args = job.args;
    const Weight& w = *args.weight;
    team_for(team, args.rows, [&](int64_t i) { store_activation(job.x, w.format, i, args.x + i * w.k); });
    matmul_phase(team, w, job.x, args.rows, {args.y, w.n, args.bias});
}

inline int linear(Engine* engine, const LinearArgs& args) {
    const Weight& w = *args.weight;
    char* memory = engine_scratch(engine, activation_bytes(w.format, args.rows, w.k));
    if (!memory) return kNoMemory;
    LinearJob job{args, make_activations(memory, w.format, args.rows, w.k)};
    engine_run(engine, linear_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
