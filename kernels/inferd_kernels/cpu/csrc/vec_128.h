// Four 128-bit vectors through the compiler's vector types: SSE2 on x86-64, NEON on aarch64.
// The aarch64 branches are compiled where that is the target; they have not been run on such a machine.
#pragma once
#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace inferd {
namespace {

constexpr int kTileRows = 4;
constexpr int kFloatBlockRows = 4;
constexpr int kFloatRows = 4, kFloatPanels = 1;
// Vectors of keys or values at once: with the sums of so many rows, in registers.
constexpr int attend_vectors([[maybe_unused]] int rows) { return 1; }

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

struct F {
    Floats v[4];
};
struct I {
    Ints v[4];
};
struct U {
    Bytes v[4];
};

#define INFERD_PARTS(type, expression)                       \
    type out;                                                \
    for (int i = 0; i < 4; i++) out.v[i] = (expression);     \
    return out

inline F load(const float* p) {
    F out;
    std::memcpy(&out, p, 64);
    return out;
}
inline void store(float* p, F x) { std::memcpy(p, &x, 64); }
inline Floats splat(float x) { return Floats{x, x, x, x}; }
inline F set1(float x) { INFERD_PARTS(F, splat(x)); }
inline F zero() { return set1(0.0f); }
inline float first(F x) { return x.v[0][0]; }
inline F add(F a, F b) { INFERD_PARTS(F, a.v[i] + b.v[i]); }
inline F sub(F a, F b) { INFERD_PARTS(F, a.v[i] - b.v[i]); }
inline F mul(F a, F b) { INFERD_PARTS(F, a.v[i] * b.v[i]); }
inline F div(F a, F b) { INFERD_PARTS(F, a.v[i] / b.v[i]); }
inline F max(F a, F b) { INFERD_PARTS(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F min(F a, F b) { INFERD_PARTS(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F abs(F a) { INFERD_PARTS(F, (Floats)((Ints)a.v[i] & 0x7FFFFFFF)); }
#if defined(__aarch64__)
inline F fma(F a, F b, F c) { INFERD_PARTS(F, (Floats)vfmaq_f32((float32x4_t)c.v[i], (float32x4_t)a.v[i], (float32x4_t)b.v[i])); }
#else
inline F fma(F a, F b, F c) { INFERD_PARTS(F, a.v[i] * b.v[i] + c.v[i]); }
#endif
// To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 drops the fraction.
inline F round(F x) { INFERD_PARTS(F, (x.v[i] + splat(12582912.0f)) - splat(12582912.0f)); }
inline Ints to_ints(Floats x) { return __builtin_convertvector(x, Ints); }
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

inline Floats scale_by_power(Floats x, Floats n) {
    // In two halves, so that 2^128 and 2^-126 are reached without leaving the exponent's range.
    const Ints whole = to_ints(n), half = whole >> 1;
    return x * (Floats)((half + 127) << 23) * (Floats)((whole - half + 127) << 23);
}
inline F scale_by_power(F x, F n) { INFERD_PARTS(F, scale_by_power(x.v[i], n.v[i])); }
inline float reduce_add(F x) {
    const Floats four = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
inline float reduce_max(F x) {
    float best = x.v[0][0];
    for (int i = 1; i < 16; i++) best = best < x.v[i / 4][i % 4] ? x.v[i / 4][i % 4] : best;
    return best;
}

inline void split_exponent(F x, F& mantissa, F& exponent) {
    for (int i = 0; i < 4; i++) {
        // Subtracting the bits of 0.75 puts the carry into the exponent, so the mantissa lies in [0.75, 1.5).
        const Ints shifted = (Ints)x.v[i] - 0x3F400000;
        mantissa.v[i] = (Floats)((shifted & 0x007FFFFF) + 0x3F400000);
        exponent.v[i] = to_floats(shifted >> 23);
    }
}

// Lanes low <= i < high of x, `other` elsewhere.
inline F keep_lanes(F x, int low, int high, float other) {
    const Ints lane = {0, 1, 2, 3};
    INFERD_PARTS(F, ((lane + 4 * i >= low) & (lane + 4 * i < high)) ? x.v[i] : splat(other));
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00) return float_of(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
    // Multiplying by 2^112 rebiases the exponent and normalizes subnormals.
    return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}
inline uint16_t float_to_half(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00);
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00);
    if (magnitude < 0x38800000u) {
        // Subnormal halves are multiples of 2^-24: adding 0.5 puts that unit at the lowest bit of the sum.
        return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u));
    }
    const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}
inline F load_f16(const uint16_t* p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = half_to_float(p[i]);
    return load(lanes);
}
inline void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < 16; i++) p[i] = float_to_half(x.v[i / 4][i % 4]);
}
inline F load_bf16(const uint16_t* p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = float_of(static_cast<uint32_t>(p[i]) << 16);
    return load(lanes);
}
inline void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < 16; i++) {
        const uint32_t bits = bits_of(x.v[i / 4][i % 4]);
        p[i] = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}
inline F load_u8(const uint8_t* p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = p[i];
    return load(lanes);
}
inline F load_i8(const uint8_t* p) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = static_cast<int8_t>(p[i]);
    return load(lanes);
}

inline F to_float(I x) { INFERD_PARTS(F, to_floats(x.v[i])); }
inline I set1_i32(int32_t x) { INFERD_PARTS(I, (Ints{x, x, x, x})); }

inline U load_bytes(const uint8_t* p) {
    U out;
    std::memcpy(&out, p, 64);
    return out;
}
inline U and_bytes(U x, uint8_t mask) { INFERD_PARTS(U, x.v[i] & mask); }
inline U or_bytes(U a, U b) { INFERD_PARTS(U, a.v[i] | b.v[i]); }
template <int n>
inline U shift_right(U x) { INFERD_PARTS(U, x.v[i] >> n); }
template <int n>
inline U shift_left(U x) { INFERD_PARTS(U, x.v[i] << n); }

// Per 32-bit lane, the sum of the products of its two 16-bit halves.
inline Ints multiply_pairs(Ints a, Ints b) {
#if defined(__x86_64__)
    return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    return (Ints)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// sum[lane] += the four unsigned bytes of the lane times the four signed bytes of x.
inline I dot4(I sum, U bytes, int32_t x) {
    // Bytes 0 and 2 of a lane as its 16-bit halves, and bytes 1 and 3.
    const int32_t x_even = (x << 24 >> 24 & 0xFFFF) | (x << 8 >> 24) * 65536;
    const int32_t x_odd = (x << 16 >> 24 & 0xFFFF) | (x >> 24) * 65536;
    const Ints even = {x_even, x_even, x_even, x_even}, odd = {x_odd, x_odd, x_odd, x_odd};
    for (int i = 0; i < 4; i++) {
        const Ints lanes = (Ints)bytes.v[i];
        sum.v[i] += multiply_pairs(lanes & 0x00FF00FF, even) + multiply_pairs(lanes >> 8 & 0x00FF00FF, odd);
    }
    return sum;
}

// To the nearest integer, ties to even, for |x| < 2^22.
inline I to_int(F x) {
    const F rounded = round(x);
    INFERD_PARTS(I, to_ints(rounded.v[i]));
}
inline I add_i32(I a, I b) { INFERD_PARTS(I, a.v[i] + b.v[i]); }
inline I sub_i32(I a, I b) { INFERD_PARTS(I, a.v[i] - b.v[i]); }
template <int n>
inline I shift_left_i32(I x) { INFERD_PARTS(I, x.v[i] << n); }
template <int n>
inline I shift_right_i32(I x) { INFERD_PARTS(I, x.v[i] >> n); }
inline int32_t reduce_add_i32(I x) {
    const Ints four = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
    return four[0] + four[1] + four[2] + four[3];
}
// The low bytes of lanes that hold values of int8.
inline void store_i8(int8_t* p, I x) {
    for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(x.v[i / 4][i % 4]);
}

inline void transpose16(F r[16]) {
    float lanes[16][16];
    for (int i = 0; i < 16; i++) store(lanes[i], r[i]);
    for (int i = 0; i < 16; i++) {
        float column[16];
        for (int j = 0; j < 16; j++) column[j] = lanes[j][i];
        r[i] = load(column);
    }
}

#undef INFERD_PARTS

// A square of keys is transposed in registers.
using S = F;
constexpr int kSquare = 16;
inline S zero_square() { return zero(); }
inline S load_square(const float* p) { return load(p); }
inline S load_square_f16(const uint16_t* p) { return load_f16(p); }
inline S load_square_bf16(const uint16_t* p) { return load_bf16(p); }
inline S load_square_i8(const uint8_t* p) { return load_i8(p); }
inline void store_square(float* p, S x) { store(p, x); }
inline void transpose_square(S r[16]) { transpose16(r); }

}  // namespace
}  // namespace inferd
