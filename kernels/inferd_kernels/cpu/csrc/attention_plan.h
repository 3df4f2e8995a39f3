// How the work of an attention is cut: blocks of query rows times KV heads, each over tiles of keys.
#pragma once
#include <initializer_list>

#include "rows.h"

namespace inferd {
namespace {

constexpr int kTile = 64;
constexpr int kTileVectors = kTile / 16;
constexpr float kMinusInfinity = -1e30f;
// Of the partial results at one time: a longer context goes through them in several passes.
constexpr size_t kPartialBytes = size_t{32} << 20;

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
    int32_t heads;           // KV heads that a chunk of work goes through, tile by tile
    int32_t max_tiles;
    int32_t pass_tiles;     // with split: tiles of each block that are computed before they are merged
    bool may_split = true;  // false where there is no memory for partial results
    bool split;             // tiles of a block are shared out between threads and merged afterwards
    float* partial;         // with split: [blocks * kv_heads][pass_tiles, then their total][rows][stride]
    char* scratch;          // per thread
    size_t scratch_bytes;
};

inline char* align64(char* p) { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63}); }

inline int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }

// A row of a partial result: o[padded dim], then m, then l.
inline int64_t partial_stride(int64_t dim) { return padded(dim) + 16; }

inline int32_t positions_per_block(const AttentionShape& shape) {
    return larger(1, 128 / (shape.heads / shape.kv_heads));
}

inline size_t part_bytes(const AttentionShape& shape, int32_t rows) {
    return rows * partial_stride(shape.head_dim) * 4;
}

// Of one thread: a tile of keys and values, and `heads` heads' queries, part and total.
inline size_t thread_bytes(const AttentionShape& shape, int32_t rows, int32_t heads) {
    const int64_t dim = padded(shape.head_dim);
    return (2 * dim * kTile + 6 * kTile) * 4 + heads * (rows * dim * 4 + 2 * part_bytes(shape, rows)) + 64;
}

inline bool is_split(int64_t chunks, int threads, int32_t max_tiles) {
    return threads > 1 && max_tiles > 1 && chunks < 4 * threads;
}

// An upper bound of plan_attention()'s bytes but for the list of blocks, whatever the batch.
inline int64_t most_attention_bytes(const AttentionShape& shape, int threads) {
    const int32_t group = shape.heads / shape.kv_heads, rows = positions_per_block(shape) * group;
    const size_t scratch = larger(thread_bytes(shape, rows, 1), thread_bytes(shape, group, shape.kv_heads));
    const size_t least = 8 * threads * larger(part_bytes(shape, rows), shape.kv_heads * part_bytes(shape, group));
    return static_cast<int64_t>(larger(kPartialBytes, least) + threads * scratch);
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
    const int64_t group = shape.heads / shape.kv_heads;
    const int64_t width = positions_per_block(shape);
    int32_t longest = 1, widest = 1;
    for (int64_t i = 0; i < batch.sequences; i++) {
        longest = larger(longest, batch.seq_lens[i]);
        widest = larger(widest, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
    }
    plan.num_blocks = count_blocks(batch, shape);
    plan.rows_per_block = static_cast<int32_t>(smaller<int64_t>(width, widest) * group);
    // The heads of a key lie side by side: with few rows, where memory is the limit, they are read in one stretch.
    plan.heads = widest == 1 ? shape.kv_heads : 1;
    plan.max_tiles = (longest + kTile - 1) / kTile;
    const int64_t chunks = plan.num_blocks * (shape.kv_heads / plan.heads);
    plan.split = plan.may_split && is_split(chunks, threads, plan.max_tiles);
    const size_t tile_bytes = plan.num_blocks * shape.kv_heads * part_bytes(shape, plan.rows_per_block);
    const int64_t fitting = static_cast<int64_t>(kPartialBytes / larger<size_t>(tile_bytes, 1)) - 1;
    plan.pass_tiles = static_cast<int32_t>(smaller<int64_t>(plan.max_tiles, larger<int64_t>(fitting, 1)));
    plan.scratch_bytes = thread_bytes(shape, plan.rows_per_block, plan.heads);
    const size_t blocks_bytes = (plan.num_blocks * sizeof(QueryBlock) + 63) / 64 * 64;
    const size_t partial_bytes = plan.split ? (plan.pass_tiles + 1) * tile_bytes : 0;
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

// `before` bytes and an attention's, planned; nullptr when there is no memory. Without room for partial results threads
// share out whole blocks: the same bits, later.
inline char* attention_scratch(Engine* engine, const Batch& batch, const AttentionShape& shape, size_t before,
                               AttentionPlan& plan) {
    const int threads = engine_threads(engine);
    for (bool may_split : {true, false}) {
        plan.may_split = may_split;
        char* memory = engine_scratch(engine, before + plan_attention(batch, shape, threads, nullptr, plan));
        if (!memory) continue;
        plan_attention(batch, shape, threads, memory + before, plan);
        return memory;
    }
    return nullptr;
}

// Where a tile's keys and values lie in the cache, in values from its start, for KV head 0. What no row of the block
// sees is read from the start of the cache, and masked.
struct Place {
    int64_t keys[kTileVectors];  // of keys in lanes: the first value of each vector
    int64_t rows[kTile];         // of each key, and of each value
    int64_t scales[kTile];       // of both, in an 8-bit cache
};

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
    float *key_scales = nullptr, *value_scales = nullptr;                       // [64] each, of an 8-bit cache
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

// KV head `head` of a block; `place` counts the heads that share a thread's scratch.
inline Unit open_unit(const AttentionArgs& args, const AttentionPlan& plan, int64_t index, int64_t head, int place,
                      int rank) {
    const AttentionShape& shape = args.shape;
    const Batch& batch = *args.batch;
    const QueryBlock& block = plan.blocks[index];
    Unit u{args, head};
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
    const int64_t query_floats = plan.rows_per_block * u.dim;
    const int64_t part_floats = plan.rows_per_block * partial_stride(shape.head_dim);
    u.key_scales = u.weights + 4 * kTile;
    u.value_scales = u.key_scales + kTile;
    u.queries = u.value_scales + kTile + place * (query_floats + 2 * part_floats);
    u.part = u.queries + query_floats;
    u.total = u.part + part_floats;
    return u;
}

}  // namespace
}  // namespace inferd
