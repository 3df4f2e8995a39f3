// One token per row of logits: argmax, or Gumbel-max over the tokens that top-k, top-p and min-p keep.
//
// The vocabulary is never sorted: thresholds come from a radix descent over order-preserving integer keys, and noise
// is only made for groups of tokens that can still win.
#pragma once
#include "rows.h"

namespace inferd {
namespace {

constexpr int kBuckets = 2048;
constexpr float kMaxGumbel = 16.64f;  // -log(-log(u)) at the largest u, 1 - 2^-24

// Integers in the order of the floats.
inline uint32_t order_key(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float value_of_key(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7FFFFFFFu : ~key;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float row_max(const float* x, int64_t count) {
    F largest = set1(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) largest = max(largest, load(x + i));
    float best = reduce_max(largest);
    for (; i < count; i++) best = larger(best, x[i]);
    return best;
}

// The lowest index of the largest value; a NaN counts as larger than anything, as in torch.
inline int64_t argmax(const float* x, int64_t count) {
    constexpr int64_t kBlock = 1024;
    float best = -INFINITY;
    int64_t winner = 0, first_nan = -1;
    for (int64_t at = 0; at < count; at += kBlock) {
        const int64_t end = smaller(count, at + kBlock);
        // x - x is not 0 for NaN and infinities only.
        F odd = zero();
        int64_t i = at;
        for (; i + 16 <= end; i += 16) odd = add(odd, sub(load(x + i), load(x + i)));
        float sum = reduce_add(odd);
        for (; i < end; i++) sum += x[i] - x[i];
        if (sum != 0.0f) {
            for (i = at; i < end && first_nan < 0; i++)
                if (x[i] != x[i]) first_nan = i;
            if (first_nan >= 0) return first_nan;
        }
        const float largest = row_max(x + at, end - at);
        if (largest > best) {
            best = largest;
            for (winner = at; x[winner] != largest;) winner++;
        }
    }
    return winner;
}

// Descends to one key: at each level, `pick` chooses a bucket from the counts and masses of the keys under the prefix.
struct Descent {
    int64_t counts[kBuckets];
    double masses[kBuckets];

    template <class Mass>
    void fill(const float* x, int64_t count, float floor, uint32_t prefix, int shift, int bits, Mass mass) {
        const int below = shift + bits;
        for (int i = 0; i < 1 << bits; i++) counts[i] = 0, masses[i] = 0;
        for (int64_t i = 0; i < count; i++) {
            if (x[i] < floor) continue;
            const uint32_t key = order_key(x[i]);
            if (below < 32 && key >> below != prefix) continue;
            const uint32_t bucket = key >> shift & ((1u << bits) - 1);
            counts[bucket]++;
            masses[bucket] += mass(x[i]);
        }
    }
};

constexpr int kLevelBits[3] = {11, 11, 10};
constexpr int kLevelShift[3] = {21, 10, 0};

// The k-th largest value.
inline float kth_largest(const float* x, int64_t count, int64_t k, Descent& descent) {
    uint32_t key = 0;
    int64_t above = 0;
    for (int level = 0; level < 3; level++) {
        descent.fill(x, count, -INFINITY, key, kLevelShift[level], kLevelBits[level], [](float) { return 0.0; });
        int bucket = (1 << kLevelBits[level]) - 1;
        while (bucket > 0 && above + descent.counts[bucket] < k) above += descent.counts[bucket--];
        key = key << kLevelBits[level] | static_cast<uint32_t>(bucket);
    }
    return value_of_key(key);
}

// The smallest value v >= floor for which the mass of the values above v is less than `part` of the mass above floor.
inline float nucleus_edge(const float* x, int64_t count, float floor, float largest, float part, Descent& descent) {
    const auto mass = [largest](float value) { return static_cast<double>(std::exp(value - largest)); };
    uint32_t key = 0;
    double above = 0.0, limit = 0.0;
    for (int level = 0; level < 3; level++) {
        const int buckets = 1 << kLevelBits[level];
        descent.fill(x, count, floor, key, kLevelShift[level], kLevelBits[level], mass);
        if (level == 0) {
            for (int i = 0; i < buckets; i++) limit += descent.masses[i];
            limit *= part;
        }
        int chosen = -1;
        double chosen_above = above;
        for (int bucket = buckets - 1; bucket >= 0; bucket--) {
            if (descent.counts[bucket] == 0) continue;
            // The largest value is always kept; a value without mass never is.
            if (chosen >= 0 && (above >= limit || descent.masses[bucket] == 0.0)) break;
            chosen = bucket;
            chosen_above = above;
            above += descent.masses[bucket];
        }
        above = chosen_above;
        key = key << kLevelBits[level] | static_cast<uint32_t>(chosen);
    }
    return value_of_key(key);
}

// 16 groups of four tokens: lane i of words[j] is word j of Philox-4x32-10 (Salmon et al. 2011) at counter first + i.
inline void philox16(uint32_t first, uint32_t position, uint32_t choice, uint64_t seed, uint32_t words[4][16]) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    uint32_t c0[16], c1[16], c2[16], c3[16];
    for (uint32_t i = 0; i < 16; i++) c0[i] = first + i, c1[i] = position, c2[i] = choice, c3[i] = 0;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 16; i++) {
            const uint64_t p0 = uint64_t{0xD2511F53u} * c0[i], p1 = uint64_t{0xCD9E8D57u} * c2[i];
            c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ key0;
            c1[i] = static_cast<uint32_t>(p1);
            c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ key1;
            c3[i] = static_cast<uint32_t>(p0);
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    std::memcpy(words[0], c0, 64), std::memcpy(words[1], c1, 64);
    std::memcpy(words[2], c2, 64), std::memcpy(words[3], c3, 64);
}

// Gumbel noise of tokens 4 * first .. 4 * first + 63, token 4 g + j at noise[j][g].
inline void gumbel64(uint32_t first, uint32_t position, uint32_t choice, uint64_t seed, float noise[4][16]) {
    uint32_t words[4][16];
    philox16(first, position, choice, seed, words);
    for (int j = 0; j < 4; j++) {
        float uniform[16];
        for (int i = 0; i < 16; i++)
            uniform[i] = (static_cast<float>(static_cast<int32_t>(words[j][i] >> 9)) + 0.5f) * 0x1p-23f;
        const F minus_log = sub(zero(), log(load(uniform)));
        store(noise[j], sub(zero(), log(minus_log)));
    }
}

// argmax of x + noise over the tokens with x >= threshold.
inline int64_t gumbel_argmax(const float* x, int64_t count, float threshold, const SampleArgs& args, int64_t row) {
    float best = -INFINITY;
    int64_t winner = -1;
    for (int64_t at = 0; at < count; at += 64) {
        const int64_t end = smaller(count, at + 64);
        const float largest = row_max(x + at, end - at);
        if (largest < threshold || largest + kMaxGumbel < best) continue;
        float noise[4][16];
        gumbel64(static_cast<uint32_t>(at / 4), static_cast<uint32_t>(args.positions[row]),
                 static_cast<uint32_t>(args.choices[row]), static_cast<uint64_t>(args.seeds[row]), noise);
        for (int64_t i = at; i < end; i++) {
            const float value = x[i] + noise[i & 3][(i - at) / 4];
            if (x[i] >= threshold && (value > best || winner < 0)) best = value, winner = i;
        }
    }
    return winner < 0 ? argmax(x, count) : winner;
}

inline int64_t sample_row(const SampleArgs& args, int64_t row, float* scaled, Descent& descent) {
    const float* logits = args.logits + row * args.vocab;
    const float temperature = args.temperature[row];
    if (!(temperature > 0.0f)) return argmax(logits, args.vocab);
    const F divisor = set1(temperature);
    for (int64_t i = 0; i < args.vocab; i += 16) {
        const int lanes = static_cast<int>(smaller<int64_t>(16, args.vocab - i));
        store_n(scaled + i, div(load_n(logits + i, lanes), divisor), lanes);
    }
    float threshold = -INFINITY;
    if (args.top_k[row] > 0 && args.top_k[row] < args.vocab)
        threshold = kth_largest(scaled, args.vocab, args.top_k[row], descent);
    const bool nucleus = args.top_p[row] < 1.0f, floor = args.min_p[row] > 0.0f;
    const float largest = nucleus || floor ? row_max(scaled, args.vocab) : 0.0f;
    if (nucleus) threshold = nucleus_edge(scaled, args.vocab, threshold, largest, args.top_p[row], descent);
    if (floor) threshold = larger(threshold, largest + std::log(larger(args.min_p[row], 1e-38f)));
    return gumbel_argmax(scaled, args.vocab, threshold, args, row);
}

struct SampleJob {
    const SampleArgs& args;
    char* scratch;
    size_t scratch_bytes;
};

inline void sample_body(Team& team, void* context) {
    const SampleJob& job = *static_cast<const SampleJob*>(context);
    char* scratch = job.scratch + team.rank * job.scratch_bytes;
    Descent& descent = *reinterpret_cast<Descent*>(scratch);
    float* scaled = reinterpret_cast<float*>(scratch + sizeof(Descent));
    team_for(team, job.args.rows,
             [&](int64_t row) { job.args.ids[row] = sample_row(job.args, row, scaled, descent); });
}

inline int sample(Engine* engine, const SampleArgs& args) {
    SampleJob job{args, nullptr, sizeof(Descent) + args.vocab * 4 + 64};
    job.scratch_bytes = (job.scratch_bytes + 63) / 64 * 64;
    job.scratch = engine_scratch(engine, engine_threads(engine) * job.scratch_bytes);
    if (!job.scratch) return kNoMemory;
    engine_run(engine, sample_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
