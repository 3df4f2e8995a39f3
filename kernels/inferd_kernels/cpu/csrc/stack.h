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

// A projection's input, once for each part in the form that its format is multiplied with.
struct Inputs {
    Activations parts[3];
};

inline int64_t input_bytes(const Linear& linear, int64_t rows) {
    int64_t bytes = 0;
    for (int p = 0; p < linear.num_parts; p++)
        bytes += activation_bytes(linear.parts[p].format, rows, linear.parts[p].k);
    return bytes;
}

inline Inputs make_inputs(char* memory, const Linear& linear, int64_t rows) {
    Inputs out{};
    for (int p = 0; p < linear.num_parts; p++) {
        const Weight& w = linear.parts[p];
        out.parts[p] = make_activations(memory, w.format, rows, w.k);
        memory += activation_bytes(w.format, rows, w.k);
    }
    return out;
}

inline void store_input(const Inputs& inputs, const Linear& linear, int64_t index, const float* row) {
    for (int p = 0; p < linear.num_parts; p++) store_activation(inputs.parts[p], linear.parts[p].format, index, row);
}

inline void project(Team& team, const Linear& linear, const Inputs& inputs, int64_t rows, float* y) {
    int64_t column = 0;
    for (int p = 0; p < linear.num_parts; p++) {
        const float* bias = linear.bias ? linear.bias + column : nullptr;
        matmul_phase(team, linear.parts[p], inputs.parts[p], rows, {y + column, linear.n, bias});
        column += linear.parts[p].n;
    }
}

struct StackSizes {
    int64_t delta, qkv, q, gate_up, rows, row_floats;
};

inline StackSizes stack_sizes(const StackArgs& args) {
    const int64_t tokens = args.batch->tokens, pass = smaller(tokens, kPassRows);
    const AttentionShape& shape = args.layers[0].attention.shape;
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
        const Linear* projections[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down};
        for (const Linear* linear : projections) out.rows = larger(out.rows, input_bytes(*linear, pass));
    }
    out.row_floats = (widest + 15) / 16 * 16;
    return out;
}

// Rows [first, last): residual += delta, then the norm as the next projection reads it.
inline Inputs norm_pass(Team& team, const StackJob& job, const float* norm, const Linear& next, bool add_delta,
                        int64_t first, int64_t last) {
    const StackArgs& args = job.args;
    const Inputs inputs = make_inputs(job.rows, next, last - first);
    float* row = job.row_space + team.rank * job.row_floats;
    team_for(team, last - first, [&](int64_t i) {
        float* hidden = args.hidden + (first + i) * args.width;
        if (add_delta) add_row(hidden, job.delta + (first + i) * args.width, hidden, args.width);
        rms_norm_row(hidden, norm, row, args.width, args.eps);
        store_input(inputs, next, i, row);
    });
    return inputs;
}

inline void attention_input(Team& team, const StackJob& job, const Layer& layer, bool add_delta, int64_t first,
                            int64_t last) {
    const Inputs inputs = norm_pass(team, job, layer.attention_norm, layer.qkv, add_delta, first, last);
    project(team, layer.qkv, inputs, last - first, job.qkv + first * layer.qkv.n);
}

inline void attention_output(Team& team, const StackJob& job, const Layer& layer, int64_t first, int64_t last) {
    const int64_t k = layer.o.parts[0].k;
    const Inputs inputs = make_inputs(job.rows, layer.o, last - first);
    team_for(team, last - first,
             [&](int64_t i) { store_input(inputs, layer.o, i, job.qkv + (first + i) * k); });
    project(team, layer.o, inputs, last - first, job.delta + first * job.args.width);
}

inline void mlp(Team& team, const StackJob& job, const Layer& layer, int64_t first, int64_t last) {
    const int64_t width = job.args.intermediate;
    const Inputs in = norm_pass(team, job, layer.mlp_norm, layer.gate_up, true, first, last);
    project(team, layer.gate_up, in, last - first, job.gate_up);
    const Inputs inputs = make_inputs(job.rows, layer.down, last - first);
    float* row = job.row_space + team.rank * job.row_floats;
    team_for(team, last - first, [&](int64_t i) {
        const float* gate = job.gate_up + i * 2 * width;
        activate_row<kSilu>(gate, gate + width, row, width);
        store_input(inputs, layer.down, i, row);
    });
    project(team, layer.down, inputs, last - first, job.delta + first * job.args.width);
}

inline void stack_body(Team& team, void* context) {
    const StackJob& job = *static_cast<const StackJob*>(context);
    const StackArgs& args = job.args;
    const int64_t tokens = args.batch->tokens;
    for (int32_t l = 0; l < args.num_layers; l++) {
        const Layer& layer = args.layers[l];
        for (int64_t first = 0; first < tokens; first += kPassRows)
            attention_input(team, job, layer, l > 0, first, smaller(tokens, first + kPassRows));
        rope_kv_phase(team, {layer.attention, job.qkv, job.q, args.batch});
        attention_phase(team, {layer.attention, job.q, job.qkv, args.batch}, job.plan);
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
    const size_t own = sizes.delta + sizes.qkv + sizes.q + sizes.gate_up + sizes.rows + threads * sizes.row_floats * 4;
    char* at = attention_scratch(engine, *args.batch, args.layers[0].attention.shape, own, job.plan);
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
    engine_run(engine, stack_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
