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

// A thread's chunk is a block of query rows with all tiles, or with `split` one of them, for plan.heads KV heads.
struct Attending {
    const AttentionArgs& args;
    const AttentionPlan& plan;
    int rank;
    Ahead ahead{};

    int64_t groups() const { return args.shape.kv_heads / plan.heads; }
    int64_t chunks() const { return plan.num_blocks * groups(); }
    Unit open(int64_t chunk, int place) {
        const int64_t head = chunk % groups() * plan.heads + place;
        return open_unit(args, plan, chunk / groups(), head, place, rank, &ahead);
    }
    float* partial(int64_t chunk, int place, int32_t tile) const {
        const int64_t part_floats = plan.rows_per_block * partial_stride(args.shape.head_dim);
        return plan.partial + ((chunk * plan.heads + place) * plan.max_tiles + tile) * part_floats;
    }
    // What follows head `place` of a tile, as far as a thread can know: `guess` is the chunk it will probably take next.
    void look(int64_t chunk, int place, int32_t tile, int32_t last_tile, int64_t guess) {
        if (place + 1 < plan.heads) look_ahead(open(chunk, place + 1), tile, ahead);
        else if (tile < last_tile) look_ahead(open(chunk, 0), tile + 1, ahead);
        else if (guess < chunks()) {
            const Unit next = open(guess, 0);
            look_ahead(next, next.first_tile, ahead);
        }
    }
};

inline void attend_split(Attending& self, int64_t c, int threads) {
    const AttentionPlan& plan = self.plan;
    const int64_t chunk = c / plan.max_tiles;
    const int32_t tile = static_cast<int32_t>(c % plan.max_tiles);
    const Unit first = self.open(chunk, 0);
    if (tile < first.first_tile || tile > first.last_tile) return;
    for (int place = 0; place < plan.heads; place++) {
        const Unit u = self.open(chunk, place);
        load_queries(u);
        if (place + 1 < plan.heads) self.look(chunk, place, tile, tile, 0);
        else if (tile + threads <= first.last_tile) look_ahead(first, tile + threads, self.ahead);
        kAttendTile[self.args.cache.type](u, tile, self.partial(chunk, place, tile));
    }
}

inline void attend_chunk(Attending& self, int64_t chunk, int threads) {
    const AttentionPlan& plan = self.plan;
    const Unit first = self.open(chunk, 0);
    for (int place = 0; place < plan.heads; place++) {
        const Unit u = self.open(chunk, place);
        clear_total(u);
        if (!plan.split) load_queries(u);
    }
    for (int32_t tile = first.first_tile; tile <= first.last_tile; tile++) {
        for (int place = 0; place < plan.heads; place++) {
            const Unit u = self.open(chunk, place);
            if (!plan.split) {
                self.look(chunk, place, tile, first.last_tile, chunk + threads);
                kAttendTile[self.args.cache.type](u, tile, u.part);
            }
            merge_part(u, plan.split ? self.partial(chunk, place, tile) : u.part);
        }
    }
    for (int place = 0; place < plan.heads; place++) write_output(self.open(chunk, place));
}

inline void attention_phase(Team& team, const AttentionArgs& args, const AttentionPlan& plan) {
    Attending self{args, plan, team.rank};
    if (plan.split)
        team_for(team, self.chunks() * plan.max_tiles, [&](int64_t c) { attend_split(self, c, team.size); });
    team_for(team, self.chunks(), [&](int64_t chunk) { attend_chunk(self, chunk, team.size); });
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
