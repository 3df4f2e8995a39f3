// Causal attention straight on the block table, for decode and prefill alike.
//
// Keys are taken in tiles of 64 at absolute positions. Per row and tile: scores, their maximum m, p = exp(s - m),
// l = sum p, o = p V; then tiles are merged in order with the running maximum (Milakov & Gimelshein 2018; Dao et al.
// 2022). What a row computes depends on its own position only, so it is the same alone, in a batch, in any chunk of a
// prefill, and whether or not the tiles of a long sequence were shared out between threads (Flash-Decoding).
#pragma once
#include "rows.h"

namespace inferd {
namespace {

constexpr int kTile = 64;
constexpr int kTileVectors = kTile / 16;
constexpr float kMinusInfinity = -1e30f;

// A block of consecutive query positions of one sequence; with one KV head it is the unit of work.
struct QueryBlock {
    int32_t sequence;
    int32_t first;  // query row within the sequence
    int32_t count;
};

struct AttentionPlan {
    QueryBlock* blocks;
    int64_t num_blocks;
    int32_t rows_per_block;  // query positions times heads per KV head
    int32_t max_tiles;
    bool split;      // tiles of a block are shared out between threads and merged afterwards
    float* partial;  // with split: [blocks * kv_heads][max_tiles][rows][stride]
    char* scratch;   // per thread
    size_t scratch_bytes;
};

inline char* align64(char* p) { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63}); }

inline int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }

// A row of a partial result: o[padded dim], then m, then l.
inline int64_t partial_stride(int64_t dim) { return padded(dim) + 16; }

inline int32_t positions_per_block(const AttentionShape& shape) {
    return larger(1, 128 / (shape.heads / shape.kv_heads));
}

inline int64_t count_blocks(const Batch& batch, const AttentionShape& shape) {
    const int64_t width = positions_per_block(shape);
    int64_t total = 0;
    for (int64_t i = 0; i < batch.sequences; i++)
        total += (batch.cu_seqlens[i + 1] - batch.cu_seqlens[i] + width - 1) / width;
    return total;
}

// What an attention over `batch` needs to know and where it works. `place` null: only the bytes are counted.
inline size_t plan_attention(const Batch& batch, const AttentionShape& shape, int threads, char* place,
                             AttentionPlan& plan) {
    const int64_t dim = padded(shape.head_dim), group = shape.heads / shape.kv_heads;
    const int64_t width = positions_per_block(shape);
    int32_t longest = 1, widest = 1;
    for (int64_t i = 0; i < batch.sequences; i++) {
        longest = larger(longest, batch.seq_lens[i]);
        widest = larger(widest, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
    }
    plan.num_blocks = count_blocks(batch, shape);
    plan.rows_per_block = static_cast<int32_t>(smaller<int64_t>(width, widest) * group);
    plan.max_tiles = (longest + kTile - 1) / kTile;
    plan.split = threads > 1 && plan.max_tiles > 1 && plan.num_blocks * shape.kv_heads < 4 * threads;
    const size_t rows_bytes = plan.rows_per_block * partial_stride(shape.head_dim) * 4;
    plan.scratch_bytes = (2 * dim * kTile + 4 * kTile) * 4 + plan.rows_per_block * dim * 4 + 2 * rows_bytes + 64;
    const size_t blocks_bytes = (plan.num_blocks * sizeof(QueryBlock) + 63) / 64 * 64;
    const size_t partial_bytes = plan.split ? plan.num_blocks * shape.kv_heads * plan.max_tiles * rows_bytes : 0;
    if (place) {
        plan.blocks = reinterpret_cast<QueryBlock*>(align64(place));
        plan.partial = reinterpret_cast<float*>(align64(place) + blocks_bytes);
        plan.scratch = align64(place) + blocks_bytes + (partial_bytes + 63) / 64 * 64;
        QueryBlock* next = plan.blocks;
        for (int64_t i = 0; i < batch.sequences; i++) {
            const int64_t length = batch.cu_seqlens[i + 1] - batch.cu_seqlens[i];
            // The last positions see most keys: they go first, so that the threads finish together.
            for (int64_t first = (length - 1) / width * width; length > 0 && first >= 0; first -= width) {
                *next++ = {static_cast<int32_t>(i), static_cast<int32_t>(first),
                           static_cast<int32_t>(smaller(width, length - first))};
            }
        }
    }
    return blocks_bytes + partial_bytes + threads * plan.scratch_bytes + 192;
}

// One block with one KV head, in a thread's scratch.
struct Unit {
    const AttentionArgs& args;
    int64_t head;  // KV head
    int64_t token = 0;  // first packed token
    int32_t sequence = 0;
    int32_t position = 0;  // of the first token
    int32_t rows = 0;      // tokens times heads per KV head; row r belongs to token r / group
    int32_t group = 0;
    int32_t dim = 0;  // padded
    int32_t first_tile = 0, last_tile = 0;
    float *keys_t = nullptr, *values = nullptr, *weights = nullptr;             // [dim][64], [64][dim], [4][64]
    float *queries = nullptr, *part = nullptr, *total = nullptr;                // [rows][dim], [rows][stride] twice

    int32_t row_position(int32_t row) const { return position + row / group; }
    int64_t row_at(int32_t row) const {
        const AttentionShape& shape = args.shape;
        return ((token + row / group) * shape.heads + head * group + row % group) * shape.head_dim;
    }
    int32_t first_key(int32_t at) const {
        return args.shape.window ? larger(0, at - args.shape.window + 1) : 0;
    }
};

inline Unit open_unit(const AttentionArgs& args, const AttentionPlan& plan, int64_t index, int rank) {
    const AttentionShape& shape = args.shape;
    const Batch& batch = *args.batch;
    const QueryBlock& block = plan.blocks[index / shape.kv_heads];
    Unit u{args, index % shape.kv_heads};
    const int32_t start = batch.cu_seqlens[block.sequence], length = batch.cu_seqlens[block.sequence + 1] - start;
    u.token = start + block.first;
    u.sequence = block.sequence;
    u.position = batch.seq_lens[block.sequence] - length + block.first;
    u.group = shape.heads / shape.kv_heads;
    u.rows = block.count * u.group;
    u.dim = static_cast<int32_t>(padded(shape.head_dim));
    u.first_tile = u.first_key(u.position) / kTile;
    u.last_tile = (u.position + block.count - 1) / kTile;
    u.keys_t = reinterpret_cast<float*>(align64(plan.scratch + rank * plan.scratch_bytes));
    u.values = u.keys_t + u.dim * kTile;
    u.weights = u.values + u.dim * kTile;
    u.queries = u.weights + 4 * kTile;
    u.part = u.queries + plan.rows_per_block * u.dim;
    u.total = u.part + plan.rows_per_block * partial_stride(shape.head_dim);
    return u;
}

inline void load_queries(const Unit& u) {
    const F scale = set1(u.args.shape.scale);
    for (int32_t r = 0; r < u.rows; r++) {
        const float* q = u.args.q + u.row_at(r);
        for (int32_t d = 0; d < u.dim; d += 16)
            store(u.queries + r * u.dim + d, mul(load_n(q + d, smaller(16, u.args.shape.head_dim - d)), scale));
    }
}

inline F load_cache(const void* cache, int type, int64_t at, int lanes) {
    if (type == kCacheF32) return load_n(static_cast<const float*>(cache) + at, lanes);
    const uint16_t* from = static_cast<const uint16_t*>(cache) + at;
    uint16_t halves[16] = {};
    if (lanes < 16) {
        std::memcpy(halves, from, lanes * 2);
        from = halves;
    }
    return type == kCacheBF16 ? load_bf16(from) : load_f16(from);
}

// Where the keys of a tile lie in the cache, -1 for those that no row of the unit sees.
inline void locate_keys(const Unit& u, int32_t tile, int64_t at[kTile]) {
    const Cache& cache = u.args.cache;
    const AttentionShape& shape = u.args.shape;
    const int32_t* table = u.args.batch->block_tables + u.sequence * u.args.batch->max_blocks;
    const int32_t first = u.first_key(u.position), last = u.row_position(u.rows - 1);
    int32_t page = tile * kTile / cache.page, offset = tile * kTile % cache.page;
    for (int32_t j = 0; j < kTile; j++, offset++) {
        if (offset == cache.page) page++, offset = 0;
        const int32_t key = tile * kTile + j;
        at[j] = key < first || key > last
                    ? -1
                    : ((int64_t{table[page]} * cache.page + offset) * shape.kv_heads + u.head) * shape.head_dim;
    }
}

inline void prefetch_rows(const void* cache, int type, const int64_t at[kTile], int64_t dim) {
    const int64_t bytes = type == kCacheF32 ? 4 : 2;
    for (int32_t j = 0; j < kTile; j++) {
        if (at[j] < 0) continue;
        const char* row = static_cast<const char*>(cache) + at[j] * bytes;
        for (int64_t i = 0; i < dim * bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
    }
}

// The tile's keys transposed to [dim][64] and its values as [64][dim], float32. Rows of one head lie apart in the
// cache, where the hardware does not see them coming: what is needed next is asked for early.
inline void load_tile(const Unit& u, int32_t tile) {
    const Cache& cache = u.args.cache;
    int64_t at[kTile], next[kTile];
    locate_keys(u, tile, at);
    prefetch_rows(cache.v, cache.type, at, u.args.shape.head_dim);
    for (int32_t j = 0; j < kTile; j += 16) {
        for (int32_t d = 0; d < u.dim; d += 16) {
            const int lanes = smaller(16, u.args.shape.head_dim - d);
            F square[16];
            for (int i = 0; i < 16; i++)
                square[i] = at[j + i] < 0 ? zero() : load_cache(cache.k, cache.type, at[j + i] + d, lanes);
            transpose16(square);
            for (int i = 0; i < 16; i++) store(u.keys_t + (d + i) * kTile + j, square[i]);
        }
    }
    if (tile < u.last_tile) {
        locate_keys(u, tile + 1, next);
        prefetch_rows(cache.k, cache.type, next, u.args.shape.head_dim);
    }
    for (int32_t j = 0; j < kTile; j++) {
        for (int32_t d = 0; d < u.dim; d += 16) {
            const int lanes = smaller(16, u.args.shape.head_dim - d);
            store(u.values + j * u.dim + d,
                  at[j] < 0 ? zero() : load_cache(cache.v, cache.type, at[j] + d, lanes));
        }
    }
}

inline F soft_cap(F score, float cap) {
    // cap * tanh(s / cap), tanh x = 1 - 2 / (e^2x + 1).
    const F power = exp(mul(score, set1(2.0f / cap)));
    return mul(set1(cap), sub(set1(1.0f), div(set1(2.0f), add(power, set1(1.0f)))));
}

// Scores of one row become weights; returns through m and l. A row that sees no key of the tile has l = 0.
inline void soften(const Unit& u, int32_t row, int32_t tile, F scores[kTileVectors], float* weights, float* stats) {
    const int32_t position = u.row_position(row), base = tile * kTile;
    const int32_t low = u.first_key(position) - base, high = position + 1 - base;
    const float cap = u.args.shape.softcap;
    F largest = set1(kMinusInfinity);
    for (int v = 0; v < kTileVectors; v++) {
        if (cap != 0.0f) scores[v] = soft_cap(scores[v], cap);
        scores[v] = keep_lanes(scores[v], low - 16 * v, high - 16 * v, kMinusInfinity);
        largest = max(largest, scores[v]);
    }
    const float m = reduce_max(largest);
    F sum = zero();
    for (int v = 0; v < kTileVectors; v++) {
        const F p = keep_lanes(exp(sub(scores[v], set1(m))), low - 16 * v, high - 16 * v, 0.0f);
        store(weights + 16 * v, p);
        sum = add(sum, p);
    }
    stats[0] = m;
    stats[1] = reduce_add(sum);
}

template <int rows, int vectors>
inline void weigh_values(const Unit& u, int32_t d, int32_t keys, float* part, int64_t stride) {
    F sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = zero();
    for (int32_t j = 0; j < keys; j++) {
        F values[vectors];
        for (int v = 0; v < vectors; v++) values[v] = load(u.values + j * u.dim + d + 16 * v);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const F p = set1(u.weights[r * kTile + j]);
            for (int v = 0; v < vectors; v++) sums[r][v] = fma(p, values[v], sums[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(part + r * stride + d + 16 * v, sums[r][v]);
}

// Partial results of rows row .. row + rows - 1 over one loaded tile.
template <int rows>
void attend_rows(const Unit& u, int32_t tile, int32_t row, float* part) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    part += row * stride;
    F scores[rows][kTileVectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < kTileVectors; v++) scores[r][v] = zero();
    const float* q = u.queries + row * u.dim;
    for (int32_t d = 0; d < u.dim; d++) {
        F keys[kTileVectors];
        for (int v = 0; v < kTileVectors; v++) keys[v] = load(u.keys_t + d * kTile + 16 * v);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const F value = set1(q[r * u.dim + d]);
            for (int v = 0; v < kTileVectors; v++) scores[r][v] = fma(value, keys[v], scores[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        soften(u, row + r, tile, scores[r], u.weights + r * kTile, part + r * stride + u.dim);
    const int32_t keys = smaller(kTile, u.row_position(row + rows - 1) + 1 - tile * kTile);
    int32_t d = 0;
    for (; d + 64 <= u.dim; d += 64) weigh_values<rows, 4>(u, d, keys, part, stride);
    for (; d < u.dim; d += 16) weigh_values<rows, 1>(u, d, keys, part, stride);
}

inline void attend_tile(const Unit& u, int32_t tile, float* part) {
    load_tile(u, tile);
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    int32_t row = 0;
    while (row < u.rows) {
        const int32_t count = smaller(4, u.rows - row);
        if (u.row_position(row + count - 1) < tile * kTile) {
            for (int32_t r = row; r < row + count; r++) part[r * stride + u.dim + 1] = 0.0f;
        } else if (count == 4) {
            attend_rows<4>(u, tile, row, part);
        } else if (count == 3) {
            attend_rows<3>(u, tile, row, part);
        } else if (count == 2) {
            attend_rows<2>(u, tile, row, part);
        } else {
            attend_rows<1>(u, tile, row, part);
        }
        row += count;
    }
}

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
            attend_tile(u, tile, plan.partial + c * part_floats);
        });
    }
    team_for(team, units, [&](int64_t c) {
        const Unit u = open_unit(args, plan, c, team.rank);
        clear_total(u);
        if (!plan.split) load_queries(u);
        for (int32_t tile = u.first_tile; tile <= u.last_tile; tile++) {
            if (!plan.split) attend_tile(u, tile, u.part);
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
