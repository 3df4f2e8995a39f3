#pragma once
#include <immintrin.h>

namespace inferd {
namespace {

constexpr int kTileRows = 16;
constexpr int kFloatBlockRows = 16;
constexpr int kFloatRows = 8, kFloatPanels = 3;
// Vectors of keys or values at once: with the sums of so many rows, in registers.
constexpr int attend_vectors([[maybe_unused]] int rows) { return 4; }

using F = __m512;
using I = __m512i;
using U = __m512i;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline float first(F x) { return _mm512_cvtss_f32(x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale_by_power(F x, F n) { return _mm512_scalef_ps(x, n); }
inline float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
inline float reduce_max(F x) { return _mm512_reduce_max_ps(x); }

inline void split_exponent(F x, F& mantissa, F& exponent) {
    mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    exponent = _mm512_sub_ps(_mm512_getexp_ps(x), _mm512_getexp_ps(mantissa));
}

inline __mmask16 lanes_between(int low, int high) {
    const uint32_t below_high = high >= 16 ? 0xFFFFu : high <= 0 ? 0u : (1u << high) - 1;
    const uint32_t below_low = low >= 16 ? 0xFFFFu : low <= 0 ? 0u : (1u << low) - 1;
    return static_cast<__mmask16>(below_high & ~below_low);
}
// Lanes low <= i < high of x, `other` elsewhere.
inline F keep_lanes(F x, int low, int high, float other) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), lanes_between(low, high), x);
}

inline F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void store_f16(uint16_t* p, F x) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store_bf16(uint16_t* p, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline F load_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
inline F load_i8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }
inline I set1_i32(int32_t x) { return _mm512_set1_epi32(x); }

inline U load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline U and_bytes(U x, uint8_t mask) { return _mm512_and_si512(x, _mm512_set1_epi8((char)mask)); }
inline U or_bytes(U a, U b) { return _mm512_or_si512(a, b); }
// Shifts within 16-bit words: the caller masks off the bits that cross a byte.
template <int n>
inline U shift_right(U x) { return _mm512_srli_epi16(x, n); }
template <int n>
inline U shift_left(U x) { return _mm512_slli_epi16(x, n); }

// sum[lane] += the four unsigned bytes of the lane times the four signed bytes of x.
inline I dot4(I sum, U bytes, int32_t x) { return _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(x)); }

// To the nearest integer, ties to even.
inline I to_int(F x) { return _mm512_cvtps_epi32(x); }
inline I add_i32(I a, I b) { return _mm512_add_epi32(a, b); }
inline I sub_i32(I a, I b) { return _mm512_sub_epi32(a, b); }
template <int n>
inline I shift_left_i32(I x) { return _mm512_slli_epi32(x, n); }
template <int n>
inline I shift_right_i32(I x) { return _mm512_srai_epi32(x, n); }
inline int32_t reduce_add_i32(I x) { return _mm512_reduce_add_epi32(x); }
// The low bytes of lanes that hold values of int8.
inline void store_i8(int8_t* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }

inline void transpose16(F r[16]) {
    F t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 2; j++) {
            const __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0xDD);
        }
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xDD);
        r[j + 4] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0x88);
        r[j + 12] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0xDD);
    }
}

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
