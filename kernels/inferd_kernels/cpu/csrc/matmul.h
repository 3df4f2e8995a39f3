// y [rows, n] = activations [rows, k] times a packed weight. One arithmetic for every number of rows: lane n of row m
// sums its groups along K in order, whatever tile it is computed in.
#pragma once
#include "activations.h"

namespace inferd {
namespace {

// Planes of one part of the panel's rows -> their quads, a byte per value.
template <int bits>
inline void unpack(const uint8_t* record, P quads[8]) {
    if constexpr (bits == 8) {
        for (int v = 0; v < 8; v++) quads[v] = load_part(record + 64 * v);
        return;
    }
    for (int v = 0; v < 4; v++) {
        const P plane = load_part(record + 64 * v);
        quads[v] = and_bytes(plane, 0x0F);
        quads[v + 4] = and_bytes(shift_right<4>(plane), 0x0F);
    }
    if constexpr (bits == 5) {
        const P plane = load_part(record + 256);
        quads[0] = or_bytes(quads[0], and_bytes(shift_left<4>(plane), 0x10));
        quads[1] = or_bytes(quads[1], and_bytes(shift_left<3>(plane), 0x10));
        quads[2] = or_bytes(quads[2], and_bytes(shift_left<2>(plane), 0x10));
        quads[3] = or_bytes(quads[3], and_bytes(shift_left<1>(plane), 0x10));
        quads[4] = or_bytes(quads[4], and_bytes(plane, 0x10));
        quads[5] = or_bytes(quads[5], and_bytes(shift_right<1>(plane), 0x10));
        quads[6] = or_bytes(quads[6], and_bytes(shift_right<2>(plane), 0x10));
        quads[7] = or_bytes(quads[7], and_bytes(shift_right<3>(plane), 0x10));
    }
    if constexpr (bits == 6) {
        for (int half = 0; half < 2; half++) {
            const P plane = load_part(record + 256 + 64 * half);
            P* to = quads + 4 * half;
            to[0] = or_bytes(to[0], and_bytes(shift_left<4>(plane), 0x30));
            to[1] = or_bytes(to[1], and_bytes(shift_left<2>(plane), 0x30));
            to[2] = or_bytes(to[2], and_bytes(plane, 0x30));
            to[3] = or_bytes(to[3], and_bytes(shift_right<2>(plane), 0x30));
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

// One part of multiply_group.
template <int format, int rows, int part>
inline void multiply_part(const uint8_t* record, const int8_t* q, I dots[2][rows]) {
    constexpr Layout layout = kLayouts[format];
    constexpr bool halves = layout.scales == Scales::kSuper16;
    constexpr int count = halves || layout.wide() ? 4 : 8;  // quads at once
    // Without it the compiler keeps the activations of one part for the next, on the stack: a fifth of the speed.
    asm volatile("" ::: "memory");
    P quads[8];
    unpack<layout.bits>(record + part * (64 / kParts), quads);
    for (int v = 0; v < 8; v += count) {
        I* sums = dots[halves && v > 0];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const auto dot = [&] {
                if constexpr (layout.wide()) return dot_quads_wide<count>(quads + v, q + r * kWideRow, v);
                else return dot_quads<layout.bits, count>(quads + v, q + r * kGroup + 4 * v);
            }();
            if (halves || v == 0) set_part(sums[r], part, dot);
            else add_part(sums[r], part, dot);
        }
    }
}

// Integer products of one group with the rows at q: dots[0], or where the group's halves have scales of their own
// dots[0] and dots[1].
template <int format, int rows>
inline void multiply_group(const uint8_t* record, const int8_t* q, I dots[2][rows]) {
    multiply_part<format, rows, 0>(record, q, dots);
    if constexpr (kParts == 2) multiply_part<format, rows, 1>(record, q, dots);
}

// Adds to `sum` the scaled products of one group.
template <int format>
inline F add_group(F sum, I dot, I rest, F scale, F second, float x_scale, const int32_t* offset) {
    constexpr Layout layout = kLayouts[format];
    sum = fma(to_float(dot), mul(scale, set1(x_scale)), sum);
    if constexpr (layout.scales == Scales::kSuper16) sum = fma(to_float(rest), mul(second, set1(x_scale)), sum);
    if constexpr (has_minimum(layout)) {
        float weighted;
        std::memcpy(&weighted, offset, 4);
        sum = fma(second, set1(weighted), sum);
    }
    return sum;
}

// `block` points at the first of the tile's rows in a block of activations.
template <int format, int rows>
inline void tile_quantized(const uint8_t* panel, const char* block, int64_t first_row, int64_t k, F sums[rows]) {
    constexpr Layout layout = kLayouts[format];
    constexpr int64_t stride = record_bytes(layout);
    const int64_t groups = k / kGroup;
    const uint8_t* record = panel + records_at(layout.scales, groups);
    const int8_t* q = reinterpret_cast<const int8_t*>(block) + first_row * (layout.wide() ? kWideRow : kGroup);
    const char* scales = block + scales_at(layout) + first_row * 4;
    // Few rows are bound by the weights' bytes: ask for the next panel, line by line, while this one is computed.
    const int64_t panel_size = panel_bytes(format, k), lines_per_group = (panel_size / groups + 63) / 64;
    const uint8_t* ahead = panel + panel_size;
    F totals[rows];
    for (int r = 0; r < rows; r++) totals[r] = zero();
    for (int64_t g = 0; g < groups; g++, record += 64 * layout.bits, q += stride, scales += stride) {
        for (int64_t line = 0; line < lines_per_group; line++, ahead += 64) __builtin_prefetch(ahead);
        const float* x_scales = reinterpret_cast<const float*>(scales);
        const int32_t* offsets = reinterpret_cast<const int32_t*>(scales) + kTileRows;
        constexpr bool halves = layout.scales == Scales::kSuper16;
        I dots[2][rows];
        multiply_group<format, rows>(record, q, dots);
        if constexpr (!has_minimum(layout)) {
            for (int r = 0; r < rows; r++) {
                dots[0][r] = add_i32(dots[0][r], set1_i32(offsets[r]));
                if constexpr (halves) dots[1][r] = add_i32(dots[1][r], set1_i32(offsets[kTileRows + r]));
            }
        }
        F scale, second;
        load_scales<layout.scales>(panel, g, scale, second);
        for (int r = 0; r < rows; r++)
            totals[r] = add_group<format>(totals[r], dots[0][r], dots[1][r], scale, second, x_scales[r], offsets + r);
    }
    for (int r = 0; r < rows; r++) sums[r] = totals[r];
}

// Float tiles span several panels: each broadcast of an activation then feeds as many products.
template <int format, int rows, int panels>
inline void tile_float(const uint8_t* panel, const char* block, int64_t first_row, int64_t k, F sums[panels][rows]) {
    constexpr int64_t value_bytes = format == F32 ? 4 : 2;
    const int64_t stride = panel_bytes(format, k);
    const float* x = reinterpret_cast<const float*>(block) + first_row;
    F totals[panels][rows];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = zero();
    for (int64_t i = 0; i < k; i++, x += kTileRows, panel += kLanes * value_bytes) {
        F weights[panels];
        for (int p = 0; p < panels; p++) {
            if constexpr (format == F32) weights[p] = load(reinterpret_cast<const float*>(panel + p * stride));
            else weights[p] = load_bf16(reinterpret_cast<const uint16_t*>(panel + p * stride));
        }
        __builtin_prefetch(x + 16 * kTileRows);
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

// `panels` panels from column n0 against `rows` rows from `row`.
template <int format, int rows, int panels>
void tile(const Weight& w, int64_t n0, const Activations& x, int64_t row, const Output& out) {
    const uint8_t* panel = w.data + n0 / kLanes * panel_bytes(format, w.k);
    const char* block = x.blocks + row / kTileRows * x.block_stride;
    F sums[panels][rows];
    if constexpr (kLayouts[format].scales == Scales::kNone)
        tile_float<format, rows, panels>(panel, block, row % kTileRows, x.k, sums);
    else tile_quantized<format, rows>(panel, block, row % kTileRows, x.k, sums[0]);
    for (int p = 0; p < panels; p++, n0 += kLanes) {
        const int lanes = static_cast<int>(smaller<int64_t>(kLanes, w.n - n0));
        const F shift = out.bias ? load_n(out.bias + n0, lanes) : zero();
        for (int r = 0; r < rows; r++) {
            float* y = out.y + (row + r) * out.stride + n0;
            store_n(y, out.bias ? add(sums[p][r], shift) : sums[p][r], lanes);
        }
    }
}

// Panels against one block of activations, rows [first, last). Wide tiles first; a row's arithmetic is the same in all
// of them. The block stays in the first-level cache while the panels stream by: each of its lines is read by many
// broadcasts, which are slow (replayed) while a line is on its way.
template <int format>
void block_panels(const Weight& w, int64_t first_panel, int64_t last_panel, const Activations& x, int64_t first,
                  int64_t last, const Output& out) {
    constexpr bool is_float = kLayouts[format].scales == Scales::kNone;
    constexpr int rows = is_float ? kFloatRows : kLayouts[format].wide() ? kWideRows : kTileRows;
    constexpr int panels = is_float ? kFloatPanels : 1;
    for (int64_t p = first_panel, step; p < last_panel; p += step) {
        int64_t row = first;
        step = p + panels <= last_panel ? panels : 1;
        if (step == panels)
            for (; row + rows <= last; row += rows) tile<format, rows, panels>(w, p * kLanes, x, row, out);
        if constexpr (rows > 4)
            for (; row + 4 <= last; row += 4)
                for (int64_t i = p; i < p + step; i++) tile<format, 4, 1>(w, i * kLanes, x, row, out);
        for (; row < last; row++)
            for (int64_t i = p; i < p + step; i++) tile<format, 1, 1>(w, i * kLanes, x, row, out);
    }
}

using BlockPanels = void (*)(const Weight&, int64_t, int64_t, const Activations&, int64_t, int64_t, const Output&);

constexpr BlockPanels kBlockPanels[kFormats] = {
    block_panels<F32>,  block_panels<BF16>, block_panels<Q4_0>, block_panels<Q4_1>, block_panels<Q5_0>,
    block_panels<Q5_1>, block_panels<Q8_0>, block_panels<Q4_K>, block_panels<Q5_K>, block_panels<Q6_K>,
};

// One phase of the team: all rows of x against w. Activations of a chunk of rows stay in the second-level cache.
inline void matmul_phase(Team& team, const Weight& w, const Activations& x, int64_t rows, const Output& out) {
    constexpr int64_t kRowChunk = 256;
    const int64_t panels = (w.n + kLanes - 1) / kLanes;
    const int64_t row_chunks = (rows + kRowChunk - 1) / kRowChunk;
    const int64_t width = larger<int64_t>(1, smaller<int64_t>(15, panels / (8 * team.size)));
    const int64_t chunks = (panels + width - 1) / width;
    team_for(team, chunks * row_chunks, [&](int64_t c) {
        const int64_t first_panel = c % chunks * width, last_panel = smaller(panels, first_panel + width);
        const int64_t last = smaller(rows, (c / chunks + 1) * kRowChunk);
        for (int64_t row = c / chunks * kRowChunk; row < last; row += kTileRows) {
            kBlockPanels[w.format](w, first_panel, last_panel, x, row, smaller<int64_t>(last, row + kTileRows), out);
        }
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
    LinearJob job{args, make_activations(memory, w.format, w.k)};
    engine_run(engine, linear_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
