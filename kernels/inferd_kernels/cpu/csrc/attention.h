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

// Pages of one sequence lie apart in the cache, where the hardware does not see them coming: the next tile is asked for
// while one is computed.
inline void attention_phase(Team& team, const AttentionArgs& args, const AttentionPlan& plan) {
    const int64_t groups = args.shape.kv_heads / plan.heads, chunks = plan.num_blocks * groups;
    const int64_t part_floats = plan.rows_per_block * partial_stride(args.shape.head_dim);
    const auto open = [&](int64_t chunk, int place) {
        return open_unit(args, plan, chunk / groups, chunk % groups * plan.heads + place, place, team.rank);
    };
    const auto partial = [&](int64_t chunk, int place, int32_t tile) {
        return plan.partial + ((chunk * plan.heads + place) * plan.max_tiles + tile) * part_floats;
    };
    const AttendTile attend = kAttendTile[args.cache.type];
    if (plan.split) {
        team_for(team, chunks * plan.max_tiles, [&](int64_t c) {
            const int64_t chunk = c / plan.max_tiles;
            const int32_t tile = static_cast<int32_t>(c % plan.max_tiles);
            const Unit first = open(chunk, 0);
            if (tile < first.first_tile || tile > first.last_tile) return;
            prefetch_tile(first, tile, plan.heads);
            for (int place = 0; place < plan.heads; place++) {
                const Unit u = open(chunk, place);
                load_queries(u);
                attend(u, tile, partial(chunk, place, tile));
            }
        });
    }
    team_for(team, chunks, [&](int64_t chunk) {
        const Unit first = open(chunk, 0);
        if (!plan.split) prefetch_tile(first, first.first_tile, plan.heads);
        for (int place = 0; place < plan.heads; place++) {
            const Unit u = open(chunk, place);
            clear_total(u);
            if (!plan.split) load_queries(u);
        }
        for (int32_t tile = first.first_tile; tile <= first.last_tile; tile++) {
            if (!plan.split && tile < first.last_tile) prefetch_tile(first, tile + 1, plan.heads);
            for (int place = 0; place < plan.heads; place++) {
                const Unit u = open(chunk, place);
                if (!plan.split) attend(u, tile, u.part);
                merge_part(u, plan.split ? partial(chunk, place, tile) : u.part);
            }
        }
        for (int place = 0; place < plan.heads; place++) write_output(open(chunk, place));
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
