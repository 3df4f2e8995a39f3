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

// What the sum of a row's values is multiplied with. A sink adds e^sink to the denominator; rows without a key are 0.
inline float normalizer(const Unit& u, int32_t row, float m, float l) {
    if (!u.args.sinks) return l > 0.0f ? 1.0f / l : 0.0f;
    const float sink = u.args.sinks[u.head * u.group + row % u.group], top = larger(m, sink);
    const float scale = exp(m - top);
    return scale / (l * scale + exp(sink - top));
}

inline void write_output(const Unit& u) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    for (int32_t r = 0; r < u.rows; r++) {
        const float* from = u.total + r * stride;
        float* out = u.args.out + u.row_at(r);
        const F inverse = set1(normalizer(u, r, from[u.dim], from[u.dim + 1]));
        for (int32_t d = 0; d < u.args.shape.head_dim; d += 16)
            store_n(out + d, mul(load(from + d), inverse), smaller(16, u.args.shape.head_dim - d));
    }
}

// What is read after a tile, from KV head `head` on.
struct Following {
    Place place;
    int64_t head;
};

// A thread's chunk is a block of query rows with all tiles, or with `split` one of them, for plan.heads KV heads.
struct Attending {
    const AttentionArgs& args;
    const AttentionPlan& plan;
    int rank;

    int64_t groups() const { return args.shape.kv_heads / plan.heads; }
    int64_t chunks() const { return plan.num_blocks * groups(); }
    Unit open(int64_t chunk, int place) const {
        const int64_t head = chunk % groups() * plan.heads + place;
        return open_unit(args, plan, chunk / groups(), head, place, rank);
    }
    // Of the `index`-th tile of a pass, or with pass_tiles their total.
    float* partial(int64_t chunk, int place, int32_t index) const {
        const int64_t part_floats = plan.rows_per_block * partial_stride(args.shape.head_dim);
        return plan.partial + ((chunk * plan.heads + place) * (plan.pass_tiles + 1) + index) * part_floats;
    }
    // The tile after `tile` of a chunk, as far as a thread can know: `guess` is the chunk it will probably take next.
    Following after(const Unit& first, int32_t tile, int32_t step, int64_t guess) const {
        if (tile + step <= first.last_tile) return {locate(first, tile + step), first.head};
        if (guess >= chunks()) return {Place{}, 0};
        const Unit next = open(guess, 0);
        return {locate(next, next.first_tile), next.head};
    }
    // The heads of a chunk over one tile; `part` says where the partial results of one of them go.
    template <class Part>
    void attend(int64_t chunk, int32_t tile, const Place& here, const Following& next, const Part& part) const {
        for (int place = 0; place < plan.heads; place++) {
            const Unit u = open(chunk, place);
            const bool is_last = place + 1 == plan.heads;
            const Tile work{tile, &here, is_last ? &next.place : &here, is_last ? next.head : u.head + 1};
            kAttendTile[args.cache.type](u, work, part(u, place));
        }
    }
};

// A tile of the pass that begins with tile `begin`.
inline void attend_split(const Attending& self, int64_t c, int32_t begin, int threads) {
    const AttentionPlan& plan = self.plan;
    const int64_t chunk = c / plan.pass_tiles;
    const int32_t index = static_cast<int32_t>(c % plan.pass_tiles), tile = begin + index;
    const Unit first = self.open(chunk, 0);
    if (tile < first.first_tile || tile > first.last_tile) return;
    for (int place = 0; place < plan.heads; place++) load_queries(self.open(chunk, place));
    self.attend(chunk, tile, locate(first, tile), self.after(first, tile, threads, self.chunks()),
                [&](const Unit&, int place) { return self.partial(chunk, place, index); });
}

// Adds that pass to the total of a chunk; after the last pass, writes it out.
inline void merge_split(const Attending& self, int64_t chunk, int32_t begin) {
    const AttentionPlan& plan = self.plan;
    const int32_t end = begin + plan.pass_tiles;
    for (int place = 0; place < plan.heads; place++) {
        Unit u = self.open(chunk, place);
        u.total = self.partial(chunk, place, plan.pass_tiles);
        if (begin == 0) clear_total(u);
        for (int32_t tile = larger(begin, u.first_tile); tile <= u.last_tile && tile < end; tile++)
            merge_part(u, self.partial(chunk, place, tile - begin));
        if (end >= plan.max_tiles) write_output(u);
    }
}

inline void attend_chunk(const Attending& self, int64_t chunk, int threads) {
    const AttentionPlan& plan = self.plan;
    const Unit first = self.open(chunk, 0);
    for (int place = 0; place < plan.heads; place++) {
        const Unit u = self.open(chunk, place);
        clear_total(u);
        load_queries(u);
    }
    Place here = locate(first, first.first_tile);
    for (int32_t tile = first.first_tile; tile <= first.last_tile; tile++) {
        const Following next = self.after(first, tile, 1, chunk + threads);
        self.attend(chunk, tile, here, next, [](const Unit& u, int) { return u.part; });
        here = next.place;
        for (int place = 0; place < plan.heads; place++) {
            const Unit u = self.open(chunk, place);
            merge_part(u, u.part);
        }
    }
    for (int place = 0; place < plan.heads; place++) write_output(self.open(chunk, place));
}

inline void attention_phase(Team& team, const AttentionArgs& args, const AttentionPlan& plan) {
    const Attending self{args, plan, team.rank};
    if (!plan.split) return team_for(team, self.chunks(), [&](int64_t chunk) { attend_chunk(self, chunk, team.size); });
    for (int32_t begin = 0; begin < plan.max_tiles; begin += plan.pass_tiles) {
        team_for(team, self.chunks() * plan.pass_tiles, [&](int64_t c) { attend_split(self, c, begin, team.size); });
        team_for(team, self.chunks(), [&](int64_t chunk) { merge_split(self, chunk, begin); });
    }
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
    if (!attention_scratch(engine, *args.batch, args.shape, 0, job.plan)) return kNoMemory;
    engine_run(engine, attention_body, &job);
    return 0;
}

inline int64_t attention_bytes(Engine* engine, const AttentionShape& shape) {
    return most_attention_bytes(shape, engine_threads(engine));
}

}  // namespace
}  // namespace inferd
