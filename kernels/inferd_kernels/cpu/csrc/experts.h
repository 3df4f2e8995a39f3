// Experts: each token's rows through the gated feed-forward of the few experts that it goes to, and their weighted sum.
//
// A pair is a token and one of its choices. Pairs are lined up by expert; one matmul per matrix then goes over all
// experts that have rows, cut into panels, so that the threads share the experts of one token as well as those of a
// long prompt, and no weight of an expert without rows is read. A pair is computed from its own token alone.
#pragma once
#include <vector>

#include "rows.h"

namespace inferd {
namespace {

constexpr int64_t kExpertPassBytes = 64 << 20;  // of scratch; more tokens go in passes
constexpr int64_t kSumColumns = 1024;           // of a chunk of the weighted sum

// The pairs of one expert stand side by side, from place `first` on.
struct ExpertGroup {
    int32_t expert;
    int64_t first;
    int64_t rows;
    Activations in, inner;  // what its two matrices read
};

struct ExpertsJob {
    const ExpertsArgs& args;
    int64_t first_token;
    int64_t tokens;
    std::vector<ExpertGroup> groups;
    std::vector<int32_t> owners;  // group of each place
    std::vector<int32_t> pairs;   // the pair at each place
    std::vector<int64_t> places;  // where each pair is
    float* products;              // [pairs][2 intermediate], then [pairs][width]
    float* row_space;             // per thread, [intermediate]
};

inline int64_t product_floats(const ExpertsArgs& args) { return larger(2 * args.intermediate, args.width); }

inline int64_t tokens_per_pass(const ExpertsArgs& args) {
    const int64_t row_bytes = 4 * (product_floats(args) + args.width + args.intermediate);
    return larger<int64_t>(16, kExpertPassBytes / (row_bytes * args.top_k));
}

// Lines up the pairs of the pass, an expert's in the order of the tokens.
inline void line_up_pairs(ExpertsJob& job) {
    const ExpertsArgs& args = job.args;
    const int32_t* ids = args.ids + job.first_token * args.top_k;
    const int64_t count = job.tokens * args.top_k;
    std::vector<int64_t> rows(args.num_experts, 0), group_of(args.num_experts, 0);
    for (int64_t pair = 0; pair < count; pair++) rows[ids[pair]]++;
    int64_t first = 0;
    for (int32_t e = 0; e < args.num_experts; e++) {
        if (!rows[e]) continue;
        group_of[e] = static_cast<int64_t>(job.groups.size());
        job.groups.push_back({e, first, 0, {}, {}});
        first += rows[e];
    }
    job.owners.resize(count);
    job.pairs.resize(count);
    job.places.resize(count);
    for (int64_t pair = 0; pair < count; pair++) {
        const int64_t owner = group_of[ids[pair]];
        ExpertGroup& group = job.groups[owner];
        const int64_t place = group.first + group.rows++;
        job.owners[place] = static_cast<int32_t>(owner);
        job.pairs[place] = static_cast<int32_t>(pair);
        job.places[pair] = place;
    }
}

// Gives every group its activations; `place` null: only the bytes are counted.
inline int64_t place_groups(ExpertsJob& job, char* place) {
    int64_t bytes = 0;
    const auto take = [&](int32_t format, int64_t rows, int64_t k) {
        const Activations out = make_activations(place ? place + bytes : nullptr, format, rows, k);
        bytes += activation_bytes(format, rows, k);
        return out;
    };
    for (ExpertGroup& group : job.groups) {
        const Weight &up = job.args.gate_up[group.expert], &down = job.args.down[group.expert];
        group.in = take(up.format, group.rows, up.k);
        group.inner = take(down.format, group.rows, down.k);
    }
    return bytes;
}

// One phase: the rows of every group times its expert's matrix, to products [pairs][n].
template <class WeightOf, class InputOf>
inline void experts_matmul(Team& team, const ExpertsJob& job, int64_t n, const float* biases, WeightOf weight_of,
                           InputOf input_of) {
    const int64_t panels = (n + kLanes - 1) / kLanes, groups = static_cast<int64_t>(job.groups.size());
    const int64_t chunks_per_thread = job.tokens < 8 ? 8 : 16;  // as in matmul_phase
    const int64_t width =
        larger<int64_t>(1, smaller<int64_t>(15, panels * groups / (chunks_per_thread * team.size)));
    const int64_t chunks = (panels + width - 1) / width;
    team_for(team, chunks * groups, [&](int64_t c) {
        const ExpertGroup& group = job.groups[c / chunks];
        const Weight& w = weight_of(group);
        const Activations& x = input_of(group);
        const float* bias = biases ? biases + group.expert * n : nullptr;
        const Output out{job.products + group.first * n, n, bias};
        const int64_t first_panel = c % chunks * width, last_panel = smaller(panels, first_panel + width);
        for (int64_t row = 0; row < group.rows; row += x.block_rows)
            kBlockPanels[w.format](w, first_panel, last_panel, x, row, smaller(group.rows, row + x.block_rows), out);
    });
}

inline void sum_choices(Team& team, const ExpertsJob& job) {
    const ExpertsArgs& args = job.args;
    const int64_t chunks = (args.width + kSumColumns - 1) / kSumColumns;
    team_for(team, job.tokens * chunks, [&](int64_t c) {
        const int64_t token = c / chunks, end = smaller<int64_t>(args.width, (c % chunks + 1) * kSumColumns);
        const float* weights = args.weights + (job.first_token + token) * args.top_k;
        float* y = args.y + (job.first_token + token) * args.width;
        for (int64_t i = c % chunks * kSumColumns; i < end; i += 16) {
            const int lanes = static_cast<int>(smaller<int64_t>(16, end - i));
            F sum = zero();
            for (int32_t choice = 0; choice < args.top_k; choice++) {
                const float* product = job.products + job.places[token * args.top_k + choice] * args.width;
                sum = fma(set1(weights[choice]), load_n(product + i, lanes), sum);
            }
            store_n(y + i, sum, lanes);
        }
    });
}

inline void experts_body(Team& team, void* context) {
    const ExpertsJob& job = *static_cast<const ExpertsJob*>(context);
    const ExpertsArgs& args = job.args;
    const int64_t count = job.tokens * args.top_k;
    team_for(team, count, [&](int64_t place) {
        const ExpertGroup& group = job.groups[job.owners[place]];
        const float* x = args.x + (job.first_token + job.pairs[place] / args.top_k) * args.width;
        store_activation(group.in, args.gate_up[group.expert].format, place - group.first, x);
    });
    experts_matmul(
        team, job, 2 * args.intermediate, args.gate_up_bias,
        [&](const ExpertGroup& group) -> const Weight& { return args.gate_up[group.expert]; },
        [](const ExpertGroup& group) -> const Activations& { return group.in; });
    float* row = job.row_space + team.rank * padded_floats(args.intermediate);
    team_for(team, count, [&](int64_t place) {
        const ExpertGroup& group = job.groups[job.owners[place]];
        const float* gate = job.products + place * 2 * args.intermediate;
        kActivateRow[args.activation](gate, gate + args.intermediate, row, args.intermediate);
        store_activation(group.inner, args.down[group.expert].format, place - group.first, row);
    });
    experts_matmul(
        team, job, args.width, args.down_bias,
        [&](const ExpertGroup& group) -> const Weight& { return args.down[group.expert]; },
        [](const ExpertGroup& group) -> const Activations& { return group.inner; });
    sum_choices(team, job);
}

inline int experts_pass(Engine* engine, const ExpertsArgs& args, int64_t first_token, int64_t tokens) {
    ExpertsJob job{args, first_token, tokens, {}, {}, {}, {}, nullptr, nullptr};
    line_up_pairs(job);
    const int64_t activations = place_groups(job, nullptr);
    const int64_t products = padded_floats(tokens * args.top_k * product_floats(args)) * 4;
    const int64_t row_space = engine_threads(engine) * padded_floats(args.intermediate) * 4;
    char* memory = engine_scratch(engine, activations + products + row_space);
    if (!memory) return kNoMemory;
    place_groups(job, memory);
    job.products = reinterpret_cast<float*>(memory + activations);
    job.row_space = reinterpret_cast<float*>(memory + activations + products);
    engine_run(engine, experts_body, &job);
    return 0;
}

inline int experts(Engine* engine, const ExpertsArgs& args) {
    for (int64_t i = 0; i < args.tokens * args.top_k; i++)
        if (args.ids[i] < 0 || args.ids[i] >= args.num_experts) return kOutOfRange;
    const int64_t pass = tokens_per_pass(args);
    for (int64_t first = 0; first < args.tokens; first += pass) {
        const int status = experts_pass(engine, args, first, smaller(pass, args.tokens - first));
        if (status != 0) return status;
    }
    return 0;
}

}  // namespace
}  // namespace inferd
