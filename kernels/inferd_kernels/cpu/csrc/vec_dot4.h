// Products of quads where one instruction multiplies and adds four bytes of a lane (dot4 of vec_avx512.h, vec_128.h).
#pragma once

namespace inferd {
namespace {

constexpr int kQuads = 8, kWideQuads = 8;  // of a group that are multiplied at once

// Sums of `count` quads, unsigned bytes of at most `bits` bits, times 4 count signed bytes at x (never -128), to be
// added by add_dots and finished by lane_sums.
template <int bits, int count>
inline I dot_quads(const U* quads, const int8_t* x) {
    I sum = set1_i32(0);
    for (int v = 0; v < count; v++) sum = dot4(sum, quads[v], load_i32(x + 4 * v));
    return sum;
}
template <int bits>
inline I add_dots(I x, I y) { return add_i32(x, y); }
template <int bits>
inline I lane_sums(I x) { return x; }

// Wide activations: 128 * high + low, the high bytes of a group first.
inline void store_wide(int8_t* row, int at, I values) {
    const I high = shift_right_i32<7>(add_i32(values, set1_i32(64)));
    store_i8(row + at, high);
    store_i8(row + at + 32, sub_i32(values, shift_left_i32<7>(high)));
}

// Lane sums of quads first .. first + count - 1 of a group: unsigned bytes times the group's wide activations.
template <int count>
inline I dot_quads_wide(const U* quads, const int8_t* row, int first) {
    const I high = dot_quads<8, count>(quads, row + 4 * first);
    return add_i32(shift_left_i32<7>(high), dot_quads<8, count>(quads, row + 32 + 4 * first));
}

}  // namespace
}  // namespace inferd
