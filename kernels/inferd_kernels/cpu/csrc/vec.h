// Sixteen lanes of float32 (F), of int32 (I), and 64 bytes (U), for the instruction set of this translation unit.
//
// Everything in these headers has internal linkage: the same source is compiled once per instruction set, and the
// linker must never merge a function compiled for one with a function compiled for another.
// Fused multiply-adds are written out (fma) and contraction is off, so a row's arithmetic is the same in every tile.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace inferd {
namespace {

inline int32_t load_i32(const void* p) {
    int32_t value;
    std::memcpy(&value, p, 4);
    return value;
}

}  // namespace
}  // namespace inferd

#if defined(__AVX512VNNI__)
#include "vec_avx512.h"
#include "vec_dot4.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#else
#include "vec_128.h"
#include "vec_dot4.h"
#endif

namespace inferd {
namespace {

template <class T>
constexpr T smaller(T a, T b) { return b < a ? b : a; }
template <class T>
constexpr T larger(T a, T b) { return a < b ? b : a; }

// Loads and stores of the first n lanes; the others read 0.
inline F load_n(const float* p, int n) {
    if (n >= 16) return load(p);
    alignas(64) float lanes[16] = {};
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
}
inline void store_n(float* p, F x, int n) {
    if (n >= 16) return store(p, x);
    alignas(64) float lanes[16];
    store(lanes, x);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
}

// e^x to 1 ulp for x in [-87, 88]; outside, the value at the nearest end; NaN stays. x = n ln 2 + r, Taylor for e^r.
inline F exp(F x) {
    x = min(set1(88.0f), max(set1(-87.0f), x));  // the second operand wins where one is NaN
    const F n = round(mul(x, set1(1.44269504f)));
    F r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.0f / 5040);
    p = fma(p, r, set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return scale_by_power(p, n);
}
inline float exp(float x) { return first(exp(set1(x))); }

// ln x for normal positive x: x = 2^e m, m in [1/sqrt 2, sqrt 2), ln m = 2 atanh((m - 1) / (m + 1)).
inline F log(F x) {
    F mantissa, exponent;
    split_exponent(x, mantissa, exponent);
    const F s = div(sub(mantissa, set1(1.0f)), add(mantissa, set1(1.0f)));
    const F s2 = mul(s, s);
    F p = set1(2.0f / 11);
    p = fma(p, s2, set1(2.0f / 9));
    p = fma(p, s2, set1(2.0f / 7));
    p = fma(p, s2, set1(2.0f / 5));
    p = fma(p, s2, set1(2.0f / 3));
    const F series = fma(mul(p, s2), s, add(s, s));
    return fma(exponent, set1(0.693147181f), series);
}

}  // namespace
}  // namespace inferd
