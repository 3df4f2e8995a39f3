// What this machine can do at most, for the benchmarks: each thread streams its part of a buffer, or does arithmetic
// in registers only.
#pragma once
#include "matmul.h"

namespace inferd {
namespace {

constexpr int kChains = 12;  // enough independent operations to hide the latency of each

inline void read_part(const uint8_t* from, int64_t bytes, uint8_t* out) {
    U mix[4];
    for (int i = 0; i < 4; i++) mix[i] = load_bytes(from + 64 * i);
    for (int64_t at = 256; at + 256 <= bytes; at += 256)
        for (int i = 0; i < 4; i++) mix[i] = or_bytes(mix[i], load_bytes(from + at + 64 * i));
    for (int i = 1; i < 4; i++) mix[0] = or_bytes(mix[0], mix[i]);
    std::memcpy(out, &mix[0], 64);
}

inline void multiply_floats(int64_t rounds, uint8_t* out) {
    F sums[kChains];
    for (int c = 0; c < kChains; c++) sums[c] = set1(static_cast<float>(c));
    const F factor = set1(0.999f), term = set1(0.001f);
    for (int64_t i = 0; i < rounds; i++)
        for (int c = 0; c < kChains; c++) sums[c] = fma(sums[c], factor, term);
    for (int c = 1; c < kChains; c++) sums[0] = add(sums[0], sums[c]);
    std::memcpy(out, &sums[0], 64);
}

// Groups of 32 four-bit weights with 8-bit activations from the first-level cache: the densest products there are.
inline void multiply_bytes(int64_t rounds, const uint8_t* from, uint8_t* out) {
    I sums[kChains];
    for (int c = 0; c < kChains; c++) sums[c] = set1_i32(c);
    U quads[kQuads];
    for (int v = 0; v < kQuads; v++) quads[v] = and_bytes(load_bytes(from + 64 * v), 0x0F);
    for (int64_t i = 0; i < rounds; i++) {
        const int8_t* x = reinterpret_cast<const int8_t*>(from) + 32 * (i & 7);
        for (int c = 0; c < kChains; c++) {
            I dot = dot_quads<4, kQuads>(quads, x + 256 * c);
            for (int v = kQuads; v < 8; v += kQuads)
                dot = add_dots<4>(dot, dot_quads<4, kQuads>(quads, x + 256 * c + 4 * v));
            sums[c] = add_i32(sums[c], lane_sums<4>(dot));
        }
    }
    for (int c = 1; c < kChains; c++) sums[0] = add_i32(sums[0], sums[c]);
    std::memcpy(out, &sums[0], 64);
}

inline void limits_body(Team& team, void* context) {
    const LimitsArgs& args = *static_cast<const LimitsArgs*>(context);
    team_for(team, team.size, [&](int64_t part) {
        uint8_t* out = args.out + 64 * part;
        const int64_t share = args.amount / team.size / 256 * 256;
        if (args.kind == kReadBytes) read_part(args.memory + part * share, share, out);
        else if (args.kind == kFloatRounds) multiply_floats(args.amount, out);
        else multiply_bytes(args.amount, args.memory, out);
    });
}

}  // namespace
}  // namespace inferd
