// A run of decoder layers in one call: pre-norm attention and a gated SiLU MLP with a residual stream.
#pragma once
#include "attention.h"

namespace inferd {
namespace {

// Rows per pass through norm, matmul and activation, so that what flows between them stays in the second-level cache.
constexpr int64_t kPassRows = 128;

struct StackJob {
    const StackArgs& args;
    AttentionPlan plan;
    float* delta;      // [tokens, width], what the next norm adds to the residual stream
    float* qkv;        // [tokens, (Hq + 2 Hk) D], then attention's output
    float* q;          // [tokens, Hq D]
    float* gate_up;    // [pass, 2 intermediate]
    char* rows;        // activations of a pass
    float* row_space;  // per thread, the widest row
    int64_t row_floats;
};

struct StackSizes {
    int64_t delta, qkv, q, gate_up, rows, row_floats;
};

inline StackSizes stack_sizes(const StackArgs& args) {
    const int64_t tokens = args.batch->tokens, pass = smaller(tokens, kPassRows);
    const AttentionShape& shape = args.layers[0].shape;
    const int64_t q_width = int64_t{shape.heads} * shape.head_dim;
    const int64_t qkv_width = q_width + 2 * int64_t{shape.kv_heads} * shape.head_dim;
    const int64_t widest = larger<int64_t>(larger<int64_t>(args.width, args.intermediate), q_width);
    StackSizes out{};
    out.delta = (tokens * args.width * 4 + 63) / 64 * 64;
    out.qkv = (tokens * qkv_width * 4 + 63) / 64 * 64;
    out.q = (tokens * q_width * 4 + 63) / 64 * 64;
    out.gate_up = (pass * 2 * args.intermediate * 4 + 63) / 64 * 64;
    for (int32_t l = 0; l < args.num_layers; l++) {
        const Layer& layer = args.layers[l];
        const Weight* matrices[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
        for (const Weight* w : matrices) out.rows = larger(out.rows, activation_bytes(w->format, pass, w->k));
    }
    out.row_floats = (widest + 15) / 16 * 16;
    return out;
}

// Rows [first, last): residual += delta, then the norm as the next matmul reads it.
inline void norm_pass(Team& team, const StackJob& job, const float* norm, const Weight& next,
                      bool add_delta, int64_t first, int64_t last) {
    const StackArgs& args = job.args;
    const Activations x = make_activations(job.rows, next.format, args.width);
    float* row = job.row_space + team.rank * job.row_floats;
    team_for(team, last - first, [&](int64_t i) {
        float* hidden = args.hidden + (first + i) * args.width;
        if (add_delta) add_row(hidden, job.delta + (first + i) * args.width, hidden, args.width);
        rms_norm_row(hidden, norm, row, args.width, args.eps);
        store_activation(x, next.format, i, row);
    });
}

inline void attention_input(Team& team, const StackJob& job, const Layer& layer, bool add_delta, int64_t first,
                            int64_t last) {
    norm_pass(team, job, layer.attention_norm, layer.qkv, add_delta, first, last);
    const Activations x = make_activations(job.rows, layer.qkv.format, job.args.width);
    matmul_phase(team, layer.qkv, x, last - first, layer.qkv_bias, job.qkv + first * layer.qkv.n);
}

inline void attention_output(Team& team, const StackJob& job, const Layer& layer, int64_t first, int64_t last) {
    const Activations x = make_activations(job.rows, layer.o.format, layer.o.k);
    team_for(team, last - first,
             [&](int64_t i) { store_activation(x, layer.o.format, i, job.qkv + (first + i) * layer.o.k); });
    matmul_phase(team, layer.o, x, last - first, layer.o_bias, job.delta + first * job.args.width);
}

inline void mlp(Team& team, const StackJob& job, const Layer& layer, int64_t first, int64_t last) {
    const int64_t width = job.args.intermediate;
    norm_pass(team, job, layer.mlp_norm, layer.gate_up, true, first, last);
    const Activations in = make_activations(job.rows, layer.gate_up.format, job.args.width);
    matmul_phase(team, layer.gate_up, in, last - first, nullptr, job.gate_up);
    const Activations x = make_activations(job.rows, layer.down.format, width);
    float* row = job.row_space + team.rank * job.row_floats;
    team_for(team, last - first, [&](int64_t i) {
        const float* gate = job.gate_up + i * 2 * width;
        silu_mul_row(gate, gate + width, row, width);
        store_activation(x, layer.down.format, i, row);
    });
    matmul_phase(team, layer.down, x, last - first, nullptr, job.delta + first * job.args.width);
}

inline void stack_body(Team& team, void* context) {
    const StackJob& job = *static_cast<const StackJob*>(context);
    const StackArgs& args = job.args;
    const int64_t tokens = args.batch->tokens;
    for (int32_t l = 0; l < args.num_layers; l++) {
        const Layer& layer = args.layers[l];
        for (int64_t first = 0; first < tokens; first += kPassRows)
            attention_input(team, job, layer, l > 0, first, smaller(tokens, first + kPassRows));
        rope_kv_phase(team, {job.qkv, job.q, args.batch, layer.cache, layer.shape, layer.rope});
        attention_phase(team, {job.q, job.qkv, args.batch, layer.cache, layer.shape}, job.plan);
        for (int64_t first = 0; first < tokens; first += kPassRows) {
            const int64_t last = smaller(tokens, first + kPassRows);
            attention_output(team, job, layer, first, last);
            mlp(team, job, layer, first, last);
        }
    }
    team_for(team, tokens, [&](int64_t i) {
        float* hidden = args.hidden + i * args.width;
        add_row(hidden, job.delta + i * args.width, hidden, args.width);
    });
}

inline int stack(Engine* engine, const StackArgs& args) {
    if (args.num_layers == 0 || args.batch->tokens == 0) return 0;
    const int threads = engine_threads(engine);
    const StackSizes sizes = stack_sizes(args);
    StackJob job{args, {}, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, sizes.row_floats};
    const size_t plan_bytes = plan_attention(*args.batch, args.layers[0].shape, threads, nullptr, job.plan);
    const size_t total = sizes.delta + sizes.qkv + sizes.q + sizes.gate_up + sizes.rows +
                         threads * sizes.row_floats * 4 + plan_bytes;
    char* at = engine_scratch(engine, total);
    if (!at) return kNoMemory;
    const auto take = [&at](int64_t bytes) {
        char* taken = at;
        at += bytes;
        return taken;
    };
    job.delta = reinterpret_cast<float*>(take(sizes.delta));
    job.qkv = reinterpret_cast<float*>(take(sizes.qkv));
    job.q = reinterpret_cast<float*>(take(sizes.q));
    job.gate_up = reinterpret_cast<float*>(take(sizes.gate_up));
    job.rows = take(sizes.rows);
    job.row_space = reinterpret_cast<float*>(take(threads * sizes.row_floats * 4));
    plan_attention(*args.batch, args.layers[0].shape, threads, at, job.plan);
    engine_run(engine, stack_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
