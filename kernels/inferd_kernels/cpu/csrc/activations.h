// Activations as a matmul reads them: float32 for float weights, integers with one scale per group of 32 for quantized
// ones: int8, or with 8-bit weights 15 bits in two bytes (store_wide). A row is quantized from its own values alone, so
// its products do not depend on its neighbours.
//
// Rows are kept in blocks of kTileRows (kFloatBlockRows), or of as many as there are, so that a tile walks through one
// stretch of memory. A float block is [K][rows]. A quantized block is one record per group of 32: q [rows][32] of one
// or two bytes, scales [rows] float, and what undoes the weight's unsigned storage: int32 -offset * sum(q) per row
// (twice, one [rows] for each half, with 16-wide scales), or float scale * sum(q), which multiplies the weight's
// minimum.
#pragma once
#include "layout.h"
#include "vec.h"

namespace inferd {
namespace {

constexpr bool has_minimum(const Layout& layout) {
    return layout.scales == Scales::kAsymmetric || layout.scales == Scales::kSuper;
}
constexpr int64_t offsets_per_group(const Layout& layout) { return layout.scales == Scales::kSuper16 ? 2 : 1; }

// Rows of a block at most.
constexpr int64_t tile_rows(const Layout& layout) {
    return layout.scales == Scales::kNone ? kFloatBlockRows : kTileRows;
}

// Bytes of a group of one row: its integers, and with its scale and offsets.
constexpr int64_t integer_bytes(const Layout& layout) { return kGroup * (layout.wide() ? 2 : 1); }
constexpr int64_t group_bytes(const Layout& layout) {
    return integer_bytes(layout) + 4 + 4 * offsets_per_group(layout);
}

struct Activations {
    char* blocks;
    int64_t block_rows;
    int64_t block_stride;
    int64_t k;
};

// Activations of width k for a weight of this format; they take activation_bytes.
inline Activations make_activations(char* memory, int32_t format, int64_t rows, int64_t k) {
    const Layout& layout = kLayouts[format];
    const int64_t in_block = larger<int64_t>(1, smaller(rows, tile_rows(layout)));
    const int64_t row_bytes = layout.scales == Scales::kNone ? 4 * k : k / kGroup * group_bytes(layout);
    return {memory, in_block, (in_block * row_bytes + 63) / 64 * 64, k};
}

inline int64_t activation_bytes(int32_t format, int64_t rows, int64_t k) {
    const Activations one = make_activations(nullptr, format, rows, k);
    return (rows + one.block_rows - 1) / one.block_rows * one.block_stride;
}

// Stores integers at .. at + 15 of a row's group and returns their sum.
inline int32_t store_integers(I values, bool wide, int8_t* row, int at) {
    if (wide) store_wide(row, at, values);
    else store_i8(row + at, values);
    return reduce_add_i32(values);
}

// Row `row` of a block of `rows` rows.
inline void quantize_row(const float* x, const Layout& layout, char* record, int64_t row, int64_t rows, int64_t k) {
    const int64_t stride = rows * group_bytes(layout);
    const float limit = layout.wide() ? 127.0f * 128.0f : 127.0f;
    for (int64_t i = 0; i < k; i += kGroup, record += stride) {
        const F low = load(x + i), high = load(x + i + 16);
        const float largest = reduce_max(max(abs(low), abs(high)));
        const float scale = largest / limit;
        const F inverse = set1(largest > 0 ? limit / largest : 0.0f);
        int8_t* q = reinterpret_cast<int8_t*>(record) + row * integer_bytes(layout);
        float* scales = reinterpret_cast<float*>(record + rows * integer_bytes(layout));
        int32_t* offsets = reinterpret_cast<int32_t*>(scales + rows);
        const int32_t sum_low = store_integers(to_int(mul(low, inverse)), layout.wide(), q, 0);
        const int32_t sum_high = store_integers(to_int(mul(high, inverse)), layout.wide(), q, 16);
        scales[row] = scale;
        if (has_minimum(layout)) {
            const float weighted = scale * static_cast<float>(sum_low + sum_high);
            std::memcpy(&offsets[row], &weighted, 4);
        } else if (offsets_per_group(layout) == 2) {
            offsets[row] = -layout.offset * sum_low;
            offsets[rows + row] = -layout.offset * sum_high;
        } else {
            offsets[row] = -layout.offset * (sum_low + sum_high);
        }
    }
}

// Stores row `index` in the form that a weight of this format is multiplied with.
inline void store_activation(const Activations& out, int32_t format, int64_t index, const float* x) {
    const Layout& layout = kLayouts[format];
    char* block = out.blocks + index / out.block_rows * out.block_stride;
    const int64_t row = index % out.block_rows;
    if (layout.scales != Scales::kNone) return quantize_row(x, layout, block, row, out.block_rows, out.k);
    float* to = reinterpret_cast<float*>(block) + row;
    for (int64_t i = 0; i < out.k; i++) to[i * out.block_rows] = x[i];
}

}  // namespace
}  // namespace inferd
