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

// A descent to one key of a row, most significant bits first. Each level counts the values (and their mass) by bucket;
// the next one looks only at the values that share the bucket chosen.
struct Descent {
    int64_t counts[kBuckets];
    double masses[kBuckets];
    float* values;  // those still in question
    float* mass_of;
    int64_t size;

    void fill(int level) {
        std::memset(counts, 0, sizeof counts);
        std::memset(masses, 0, sizeof masses);
        for (int64_t i = 0; i < size; i++) {
            const uint32_t bucket = bucket_of(values[i], level);
            counts[bucket]++;
            masses[bucket] += mass_of[i];
        }
    }

    void keep(uint32_t bucket, int level) {
        int64_t kept = 0;
        for (int64_t i = 0; i < size; i++) {
            values[kept] = values[i];
            mass_of[kept] = mass_of[i];
            kept += bucket_of(values[i], level) == bucket;
        }
        size = kept;
    }

    static uint32_t bucket_of(float value, int level) {
        constexpr int shifts[3] = {21, 10, 0};
        return order_key(value) >> shifts[level] & (level < 2 ? 0x7FF : 0x3FF);
    }
};

constexpr int kLevels = 3;

// The k-th largest of the descent's values.
inline float kth_largest(Descent& descent, int64_t k) {
    if (descent.size < k) return -INFINITY;  // what is not a number has no rank
    int64_t above = 0;
    for (int level = 0; level < kLevels; level++) {
        descent.fill(level);
        uint32_t bucket = kBuckets - 1;
        while (above + descent.counts[bucket] < k) above += descent.counts[bucket--];
        descent.keep(bucket, level);
    }
    return descent.values[0];
}

// The smallest of the descent's values for which the mass of the values above it is less than `part` of all mass.
inline float nucleus_edge(Descent& descent, float part) {
    if (descent.size == 0) return -INFINITY;
    double above = 0.0, limit = 0.0;
    for (int level = 0; level < kLevels; level++) {
        descent.fill(level);
        if (level == 0) {
            for (const double mass : descent.masses) limit += mass;
            limit *= part;
        }
        uint32_t chosen = 0;
        double chosen_above = above;
        bool found = false;
        for (int bucket = kBuckets - 1; bucket >= 0; bucket--) {
            if (descent.counts[bucket] == 0) continue;
            // The largest value is always kept; a value without mass never is.
            if (found && (above >= limit || descent.masses[bucket] == 0.0)) break;
            found = true;
            chosen = static_cast<uint32_t>(bucket);
            chosen_above = above;
            above += descent.masses[bucket];
        }
        above = chosen_above;
        descent.keep(chosen, level);
    }
    return descent.values[0];
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

// Puts the values >= floor into the descent, each with its mass e^(value - largest).
inline void load_descent(Descent& descent, const float* x, int64_t count, float floor, float largest) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        descent.values[kept] = x[i];
        kept += x[i] >= floor;
    }
    for (int64_t i = 0; i < kept; i += 16) {
        const int lanes = static_cast<int>(smaller<int64_t>(16, kept - i));
        const F below = sub(load_n(descent.values + i, lanes), set1(largest));
        alignas(64) float masses[16], distances[16];
        store(masses, exp(below));
        store(distances, below);
        for (int j = 0; j < lanes; j++) descent.mass_of[i + j] = distances[j] < -87.0f ? 0.0f : masses[j];
    }
    descent.size = kept;
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
    const float largest = row_max(scaled, args.vocab);
    if (args.top_k[row] > 0 && args.top_k[row] < args.vocab) {
        load_descent(descent, scaled, args.vocab, threshold, largest);
        threshold = kth_largest(descent, args.top_k[row]);
    }
    if (args.top_p[row] < 1.0f) {
        load_descent(descent, scaled, args.vocab, threshold, largest);
        threshold = nucleus_edge(descent, args.top_p[row]);
    }
    if (args.min_p[row] > 0.0f) threshold = larger(threshold, largest + std::log(larger(args.min_p[row], 1e-38f)));
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
    descent.values = scaled + job.args.vocab;
    descent.mass_of = descent.values + job.args.vocab + 1;
    team_for(team, job.args.rows,
             [&](int64_t row) { job.args.ids[row] = sample_row(job.args, row, scaled, descent); });
}

inline int sample(Engine* engine, const SampleArgs& args) {
    SampleJob job{args, nullptr, sizeof(Descent) + (3 * args.vocab + 2) * 4 + 64};
    job.scratch_bytes = (job.scratch_bytes + 63) / 64 * 64;
    job.scratch = engine_scratch(engine, engine_threads(engine) * job.scratch_bytes);
    if (!job.scratch) return kNoMemory;
    engine_run(engine, sample_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
