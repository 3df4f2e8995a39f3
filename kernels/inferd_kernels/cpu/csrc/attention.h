// Causal attention straight on the block table, for decode and prefill alike.
//
// Keys are taken in tiles of 64 at absolute positions. Per row and tile: scores, their maximum m, p = exp(s - m),
// l = sum p, o = p V; then tiles are merged in order with the running maximum (Milakov & Gimelshein 2018; Dao et al.
// 2022). What a row computes depends on its own position only, so it is the same alone, in a batch, in any chunk of a
// prefill, and whether or not the tiles of a long sequence were shared out between threads (Flash-Decoding).
#pragma once
#include "attention_tile.h"

namespace inferd {
namespace {

inline void clear_total(const Unit& u) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    std::memset(u.total, 0, u.rows * stride * 4);
    for (int32_t r = 0; r < u.rows; r++) u.total[r * stride + u.dim] = kMinusInfinity;
}

inline void merge_part(const Unit& u, const float* part) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    for (int32_t r = 0; r < u.rows; r++) {
        const float* from = part + r * stride;
        float* to = u.total + r * stride;
        if (from[u.dim + 1] == 0.0f) continue;
        const float m = larger(to[u.dim], from[u.dim]);
        const float keep = exp(to[u.dim] - m), take = exp(from[u.dim] - m);
        for (int32_t d = 0; d < u.dim; d += 16)
            store(to + d, fma(load(from + d), set1(take), mul(load(to + d), set1(keep))));
        to[u.dim] = m;
        to[u.dim + 1] = to[u.dim + 1] * keep + from[u.dim + 1] * take;
    }
}

inline void write_output(const Unit& u) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    for (int32_t r = 0; r < u.rows; r++) {
        const float* from = u.total + r * stride;
        float* out = u.args.out + u.row_at(r);
        const F inverse = set1(1.0f / from[u.dim + 1]);
        for (int32_t d = 0; d < u.args.shape.head_dim; d += 16)
            store_n(out + d, mul(load(from + d), inverse), smaller(16, u.args.shape.head_dim - d));
    }
}

inline void attention_phase(Team& team, const AttentionArgs& args, const AttentionPlan& plan) {
    const int64_t units = plan.num_blocks * args.shape.kv_heads;
    const int64_t part_floats = plan.rows_per_block * partial_stride(args.shape.head_dim);
    if (plan.split) {
        team_for(team, units * plan.max_tiles, [&](int64_t c) {
            const Unit u = open_unit(args, plan, c / plan.max_tiles, team.rank);
            const int32_t tile = static_cast<int32_t>(c % plan.max_tiles);
            if (tile < u.first_tile || tile > u.last_tile) return;
            load_queries(u);
            kAttendTile[args.cache.type](u, tile, plan.partial + c * part_floats);
        });
    }
    team_for(team, units, [&](int64_t c) {
        const Unit u = open_unit(args, plan, c, team.rank);
        clear_total(u);
        if (!plan.split) load_queries(u);
        for (int32_t tile = u.first_tile; tile <= u.last_tile; tile++) {
            if (!plan.split) kAttendTile[args.cache.type](u, tile, u.part);
            merge_part(u, plan.split ? plan.partial + (c * plan.max_tiles + tile) * part_floats : u.part);
        }
        write_output(u);
    });
}

struct AttentionJob {
    const AttentionArgs& args;
    AttentionPlan plan;
};

inline void attention_body(Team& team, void* context) {
    const AttentionJob& job = *static_cast<const AttentionJob*>(context);
    attention_phase(team, job.args, job.plan);
}

inline int attention(Engine* engine, const AttentionArgs& args) {
    AttentionJob job{args, {}};
    const int threads = engine_threads(engine);
    char* memory = engine_scratch(engine, plan_attention(*args.batch, args.shape, threads, nullptr, job.plan));
    if (!memory) return kNoMemory;
    plan_attention(*args.batch, args.shape, threads, memory, job.plan);
    engine_run(engine, attention_body, &job);
    return 0;
}

}  // namespace
}  // namespace inferd
