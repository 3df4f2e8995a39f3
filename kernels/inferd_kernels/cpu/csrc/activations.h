// Activations as a matmul reads them: float32 for float weights, int8 with one scale per group of 32 for quantized
// ones. A row is quantized from its own values alone, so its products do not depend on its neighbours.
//
// Rows are kept in blocks of kTileRows, so that a tile walks through one stretch of memory. A float block is
// [K][rows]. A quantized block is one record per group of 32: q [rows][32] int8, scales [rows] float, and what undoes
// the weight's unsigned storage: int32 -offset * sum(q) per row (twice, one [rows] for each half, with 16-wide
// scales), or float scale * sum(q), which multiplies the weight's minimum.
#pragma once
#include "layout.h"
#include "vec.h"

namespace inferd {
namespace {

constexpr bool has_minimum(const Layout& layout) {
    return layout.scales == Scales::kAsymmetric || layout.scales == Scales::kSuper;
}
constexpr int64_t offsets_per_group(const Layout& layout) { return layout.scales == Scales::kSuper16 ? 2 : 1; }

constexpr int64_t record_bytes(const Layout& layout) {
    return kTileRows * (kGroup + 4 + 4 * offsets_per_group(layout));
}

// Bytes of a block of rows of width k for a weight of this format.
constexpr int64_t block_bytes(const Layout& layout, int64_t k) {
    return layout.scales == Scales::kNone ? kTileRows * k * 4 : k / kGroup * record_bytes(layout);
}

constexpr int64_t activation_bytes(int32_t format, int64_t rows, int64_t k) {
    return (rows + kTileRows - 1) / kTileRows * ((block_bytes(kLayouts[format], k) + 63) / 64 * 64);
}

struct Activations {
    char* blocks;
    int64_t block_stride;
    int64_t k;
};

inline Activations make_activations(char* memory, int32_t format, int64_t k) {
    return {memory, activation_bytes(format, 1, k), k};
}

inline void quantize_row(const float* x, const Layout& layout, char* record, int64_t row, int64_t k) {
    const int64_t stride = record_bytes(layout);
    for (int64_t i = 0; i < k; i += kGroup, record += stride) {
        const F low = load(x + i), high = load(x + i + 16);
        const float largest = reduce_max(max(abs(low), abs(high)));
        const float scale = largest / 127.0f;
        const F inverse = set1(largest > 0 ? 127.0f / largest : 0.0f);
        int8_t* q = reinterpret_cast<int8_t*>(record) + row * kGroup;
        float* scales = reinterpret_cast<float*>(record + kTileRows * kGroup);
        int32_t* offsets = reinterpret_cast<int32_t*>(scales + kTileRows);
        const int32_t sum_low = quantize16(mul(low, inverse), q);
        const int32_t sum_high = quantize16(mul(high, inverse), q + 16);
        scales[row] = scale;
        if (has_minimum(layout)) {
            const float weighted = scale * static_cast<float>(sum_low + sum_high);
            std::memcpy(&offsets[row], &weighted, 4);
        } else if (offsets_per_group(layout) == 2) {
            offsets[row] = -layout.offset * sum_low;
            offsets[kTileRows + row] = -layout.offset * sum_high;
        } else {
            offsets[row] = -layout.offset * (sum_low + sum_high);
        }
    }
}

// Stores row `index` in the form that a weight of this format is multiplied with.
inline void store_activation(const Activations& out, int32_t format, int64_t index, const float* x) {
    const Layout& layout = kLayouts[format];
    char* block = out.blocks + index / kTileRows * out.block_stride;
    const int64_t row = index % kTileRows;
    if (layout.scales != Scales::kNone) return quantize_row(x, layout, block, row, out.k);
    float* to = reinterpret_cast<float*>(block) + row;
    for (int64_t i = 0; i < out.k; i++) to[i * kTileRows] = x[i];
}

}  // namespace
}  // namespace inferd
