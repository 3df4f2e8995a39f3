// Packed weights: panels of 16 rows of the matrix, so that one vector lane is one output column.
//
// A quantized panel is its scales, padded to 64 bytes, then one record per group of 32 along K. A record holds bit
// planes of 64 bytes; in a plane, byte 4 r + j belongs to row r and to element 4 q + j of the group (q the "quad"):
//   4 bits: planes 0..3 hold quads 0..3 in the low nibbles and quads 4..7 in the high ones
//   5 bits: and plane 4 holds the fifth bits, bit q for quad q
//   6 bits: and planes 4, 5 hold the upper two bits, bits 2 q and 2 q + 1 (q mod 4) for quads 0..3 and 4..7
//   8 bits: planes 0..7 hold quads 0..7
// Values are unsigned; w = scale * (u - offset), or scale * u + minimum.
// A float panel is [K][16].
#pragma once
#include <cstddef>
#include <cstdint>

#include "abi.h"

namespace inferd {

constexpr int kLanes = 16;
constexpr int kGroup = 32;

enum class Scales {
    kNone,        // float weights
    kSymmetric,   // per group: f16 scale [16]
    kAsymmetric,  // per group: f16 scale [16], f16 minimum [16]
    kSuper,       // per 8 groups: f16 d [16], f16 dmin [16], then per group: u8 scale [16], u8 minimum [16]
    kSuper16,     // per 8 groups: f16 d [16], then per group: i8 scale [16] of its first half, [16] of its second
};

struct Layout {
    int bits;
    int offset;
    Scales scales;

    // Activations are rounded to 8 bits, like the weights or finer; for 8-bit weights to 15, or they would lose most.
    constexpr bool wide() const { return bits == 8; }
};

constexpr Layout kLayouts[kFormats] = {
    {32, 0, Scales::kNone},       {16, 0, Scales::kNone},       {4, 8, Scales::kSymmetric},
    {4, 0, Scales::kAsymmetric},  {5, 16, Scales::kSymmetric},  {5, 0, Scales::kAsymmetric},
    {8, 128, Scales::kSymmetric}, {4, 0, Scales::kSuper},       {5, 0, Scales::kSuper},
    {6, 32, Scales::kSuper16},
};

constexpr size_t scale_bytes(Scales scales, size_t groups) {
    return scales == Scales::kSymmetric    ? 32 * groups
           : scales == Scales::kAsymmetric ? 64 * groups
           : scales == Scales::kSuper      ? groups / 8 * (64 + 8 * 32)
           : scales == Scales::kSuper16    ? groups / 8 * (32 + 8 * 32)
                                           : 0;
}

// Offset of the quantized records in a panel.
constexpr size_t records_at(Scales scales, size_t groups) { return (scale_bytes(scales, groups) + 63) / 64 * 64; }

constexpr size_t panel_bytes(int format, size_t k) {
    const Layout layout = kLayouts[format];
    return layout.scales == Scales::kNone
               ? (k * kLanes * layout.bits / 8 + 63) / 64 * 64
               : records_at(layout.scales, k / kGroup) + k / kGroup * 64 * layout.bits;
}

}  // namespace inferd
