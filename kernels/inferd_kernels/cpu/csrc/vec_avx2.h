#pragma once
#include <immintrin.h>

namespace inferd {
namespace {

constexpr int kTileRows = 16;
constexpr int kQuads = 4, kWideQuads = 2;  // of a group that are multiplied at once: with a row's sums, in registers
constexpr int kFloatBlockRows = 8;
constexpr int kFloatRows = 4, kFloatPanels = 1;  // of a tile of float weights: its sums in registers
// Vectors of keys or values at once: with the sums of so many rows, in registers.
constexpr int attend_vectors([[maybe_unused]] int rows) { return rows == 1 ? 4 : rows < 4 ? 2 : 1; }

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};

inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline float first(F x) { return _mm256_cvtss_f32(x.a); }
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F round(F x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline __m256 scale_by_power(__m256 x, __m256 n) {
    // In two halves, so that 2^128 and 2^-126 are reached without leaving the exponent's range.
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const __m256i bias = _mm256_set1_epi32(127), rest = _mm256_sub_epi32(whole, half);
    const __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(x, p), q);
}
inline F scale_by_power(F x, F n) { return {scale_by_power(x.a, n.a), scale_by_power(x.b, n.b)}; }
inline float reduce_add(F x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float reduce_max(F x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline void split_exponent(__m256 x, __m256& mantissa, __m256& exponent) {
    // Subtracting the bits of 0.75 puts the carry into the exponent, so the mantissa lies in [0.75, 1.5).
    const __m256i shifted = _mm256_sub_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(0x3F400000));
    const __m256i power = _mm256_srai_epi32(shifted, 23);
    const __m256i fraction = _mm256_and_si256(shifted, _mm256_set1_epi32(0x007FFFFF));
    mantissa = _mm256_castsi256_ps(_mm256_add_epi32(fraction, _mm256_set1_epi32(0x3F400000)));
    exponent = _mm256_cvtepi32_ps(power);
}
inline void split_exponent(F x, F& mantissa, F& exponent) {
    split_exponent(x.a, mantissa.a, exponent.a);
    split_exponent(x.b, mantissa.b, exponent.b);
}

inline __m256 keep_lanes(__m256 x, int low, int high, __m256 other) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i from = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(low - 1));
    const __m256i until = _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_and_si256(from, until)));
}
// Lanes low <= i < high of x, `other` elsewhere.
inline F keep_lanes(F x, int low, int high, float other) {
    const __m256 rest = _mm256_set1_ps(other);
    return {keep_lanes(x.a, low, high, rest), keep_lanes(x.b, low - 8, high - 8, rest)};
}

inline F load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store_f16(uint16_t* p, F x) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, mode));
    _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, mode));
}
inline __m256 widen_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
inline __m256i round_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
}
inline void store_bf16(uint16_t* p, F x) {
    const __m256i packed = _mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b));
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(packed, 0xD8));
}
inline F load_u8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
inline F load_i8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}

inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

struct U {
    __m256i a, b;
};

inline U load_bytes(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline U and_bytes(U x, uint8_t mask) {
    const __m256i bytes = _mm256_set1_epi8((char)mask);
    return {_mm256_and_si256(x.a, bytes), _mm256_and_si256(x.b, bytes)};
}
inline U or_bytes(U x, U y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
// Shifts within 16-bit words: the caller masks off the bits that cross a byte.
template <int n>
inline U shift_right(U x) { return {_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)}; }
template <int n>
inline U shift_left(U x) { return {_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)}; }

inline __m256i broadcast_i32(const void* p) { return _mm256_set1_epi32(load_i32(p)); }

// Sums of `count` quads, unsigned bytes of at most `bits` bits, times 4 count signed bytes at x (never -128), to be
// added by add_dots and finished by lane_sums. A product of pairs is at most 2 (2^bits - 1) 127: of four bits, those of a
// whole group fit 16 bits, and are widened at its end.
template <int bits, int count>
inline I dot_quads(const U* quads, const int8_t* x) {
    static_assert(bits < 8, "eight bits: dot_quads_wide");
    constexpr int safe = bits == 4 ? 8 : bits == 5 ? 4 : 2;
    const __m256i ones = _mm256_set1_epi16(1);
    I sum{};
    for (int v = 0; v < count; v += safe) {
        __m256i four = broadcast_i32(x + 4 * v);
        I words{_mm256_maddubs_epi16(quads[v].a, four), _mm256_maddubs_epi16(quads[v].b, four)};
        for (int i = v + 1; i < v + safe && i < count; i++) {
            four = broadcast_i32(x + 4 * i);
            words.a = _mm256_add_epi16(words.a, _mm256_maddubs_epi16(quads[i].a, four));
            words.b = _mm256_add_epi16(words.b, _mm256_maddubs_epi16(quads[i].b, four));
        }
        if constexpr (bits > 4) words = {_mm256_madd_epi16(words.a, ones), _mm256_madd_epi16(words.b, ones)};
        sum = v == 0 ? words : I{_mm256_add_epi32(sum.a, words.a), _mm256_add_epi32(sum.b, words.b)};
    }
    return sum;
}
template <int bits>
inline I add_dots(I x, I y) {
    if constexpr (bits == 4) return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)};
    else return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
template <int bits>
inline I lane_sums(I x) {
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (bits == 4) return {_mm256_madd_epi16(x.a, ones), _mm256_madd_epi16(x.b, ones)};
    else return x;
}

// Wide activations: int16, within a quad in the order 0 2 1 3, which are the even and the odd bytes of a lane.
inline void store_wide(int8_t* row, int at, I values) {
    const __m256i a = _mm256_shuffle_epi32(values.a, 0xD8), b = _mm256_shuffle_epi32(values.b, 0xD8);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    _mm256_storeu_si256((__m256i*)(row + 2 * at), words);
}

// Lane sums of quads first .. first + count - 1 of a group: unsigned bytes times the group's wide activations.
template <int count>
inline I dot_quads_wide(const U* quads, const int8_t* row, int first) {
    I sum{};
    for (int v = 0; v < count; v++) {
        const __m256i x_even = broadcast_i32(row + 8 * (first + v)), x_odd = broadcast_i32(row + 8 * (first + v) + 4);
        const U even = {_mm256_and_si256(quads[v].a, _mm256_set1_epi16(0xFF)),
                        _mm256_and_si256(quads[v].b, _mm256_set1_epi16(0xFF))};
        const U odd = shift_right<8>(quads[v]);
        sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(even.a, x_even));
        sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(even.b, x_even));
        sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(odd.a, x_odd));
        sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(odd.b, x_odd));
    }
    return sum;
}

// To the nearest integer, ties to even.
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline I add_i32(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I sub_i32(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
template <int n>
inline I shift_left_i32(I x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
template <int n>
inline I shift_right_i32(I x) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
inline int32_t reduce_add_i32(I x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
// The low bytes of lanes that hold values of int8.
inline void store_i8(int8_t* p, I x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}

// A square of keys is transposed in registers.
using S = __m256;
constexpr int kSquare = 8;
inline S zero_square() { return _mm256_setzero_ps(); }
inline S load_square(const float* p) { return _mm256_loadu_ps(p); }
inline S load_square_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline S load_square_bf16(const uint16_t* p) { return widen_bf16(p); }
inline S load_square_i8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
inline void store_square(float* p, S x) { _mm256_storeu_ps(p, x); }
inline void transpose_square(S r[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xEE);
        }
    }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm256_permute2f128_ps(r[j], r[j + 4], 0x20);
        t[j + 4] = _mm256_permute2f128_ps(r[j], r[j + 4], 0x31);
    }
    for (int j = 0; j < 8; j++) r[j] = t[j];
}

}  // namespace
}  // namespace inferd
