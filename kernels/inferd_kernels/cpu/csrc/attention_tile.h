// One tile of keys against the query rows of a unit: scores, weights, and the weighted values.
#pragma once
#include "attention_plan.h"

namespace inferd {
namespace {

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
    if (type == kCacheI8) {
        uint8_t bytes[16] = {};
        std::memcpy(bytes, static_cast<const uint8_t*>(cache) + at, lanes);
        return load_i8(bytes);
    }
    const uint16_t* from = static_cast<const uint16_t*>(cache) + at;
    uint16_t halves[16] = {};
    if (lanes < 16) {
        std::memcpy(halves, from, lanes * 2);
        from = halves;
    }
    return type == kCacheBF16 ? load_bf16(from) : load_f16(from);
}

inline Place locate(const Unit& u, int32_t tile) {
    const Cache& cache = u.args.cache;
    const AttentionShape& shape = u.args.shape;
    const int32_t* table = u.args.batch->block_tables + u.sequence * u.args.batch->max_blocks;
    const int64_t row = int64_t{shape.kv_heads} * shape.head_dim;
    const int32_t first = larger(0, u.first_key(u.position) - tile * kTile);
    const int32_t end = smaller(kTile, u.row_position(u.rows - 1) + 1 - tile * kTile);
    Place out{};
    for (int32_t j = first; j < end;) {
        const int32_t key = tile * kTile + j, offset = key % cache.page;
        const int32_t until = smaller(end, j + cache.page - offset);
        int64_t slot = int64_t{table[key / cache.page]} * cache.page + offset;
        for (; j < until; j++, slot++) {
            out.rows[j] = slot * row;
            out.scales[j] = slot * shape.kv_heads;
        }
    }
    if (!cache.keys_in_lanes) return out;
    for (int32_t v = first / 16; 16 * v < end; v++) {
        const int32_t key = tile * kTile + 16 * v;
        out.keys[v] = int64_t{table[key / cache.page]} * cache.page * row + key % cache.page;
    }
    return out;
}

constexpr int64_t value_bytes(int type) { return type == kCacheF32 ? 4 : type == kCacheI8 ? 1 : 2; }

// A tile for one KV head: where it lies, and where what is read after it lies, which is asked for line by line between
// products. Pages of a sequence lie apart, where the hardware does not see them coming.
struct Tile {
    int32_t index;
    const Place* here;
    const Place* next;
    int64_t next_head;
};

template <int type>
inline S read_square(const void* cache, int64_t at) {
    if constexpr (type == kCacheF32) return load_square(static_cast<const float*>(cache) + at);
    else if constexpr (type == kCacheI8) return load_square_i8(static_cast<const uint8_t*>(cache) + at);
    else if constexpr (type == kCacheBF16) return load_square_bf16(static_cast<const uint16_t*>(cache) + at);
    else return load_square_f16(static_cast<const uint16_t*>(cache) + at);
}

template <int type>
inline F read_lanes(const void* cache, int64_t at) {
    if constexpr (type == kCacheF32) return load(static_cast<const float*>(cache) + at);
    else if constexpr (type == kCacheI8) return load_i8(static_cast<const uint8_t*>(cache) + at);
    else if constexpr (type == kCacheBF16) return load_bf16(static_cast<const uint16_t*>(cache) + at);
    else return load_f16(static_cast<const uint16_t*>(cache) + at);
}

// The scales of a tile of an 8-bit cache; 0 for keys that no row sees.
inline void load_tile_scales(const Unit& u, const Tile& tile, int32_t first, int32_t last) {
    const Cache& cache = u.args.cache;
    std::memset(u.key_scales, 0, 2 * kTile * sizeof(float));
    for (int32_t j = first; j < last; j++) {
        const int64_t at = tile.here->scales[j] + u.head;
        u.key_scales[j] = cache.k_scales[at];
        u.value_scales[j] = cache.v_scales[at];
    }
}

template <int type>
inline void transpose_keys(const Unit& u, const Tile& tile) {
    const void* keys = u.args.cache.k;
    const int32_t dim = u.args.shape.head_dim;
    for (int32_t j = 0; j < kTile; j += kSquare) {
        const int64_t* rows = tile.here->rows + j;
        float* out = u.keys_t + j;
        int32_t d = 0;
        for (; d + kSquare <= dim; d += kSquare, out += kSquare * kTile) {
            S square[kSquare];
            for (int i = 0; i < kSquare; i++) square[i] = read_square<type>(keys, rows[i] + u.head * dim + d);
            transpose_square(square);
            for (int i = 0; i < kSquare; i++) store_square(out + i * kTile, square[i]);
        }
        for (; d < u.dim; d++, out += kTile) {
            for (int i = 0; i < kSquare; i++)
                out[i] = d < dim ? first(load_cache(keys, type, rows[i] + u.head * dim + d, 1)) : 0.0f;
        }
    }
}

// Keys in lanes: where value 0 of KV head `head` of a vector lies; the next ones follow `page` values apart.
template <int type>
inline const char* lanes_of(const Unit& u, const Place& place, int64_t head, int v) {
    const Cache& cache = u.args.cache;
    return static_cast<const char*>(cache.k) +
           (place.keys[v] + head * u.args.shape.head_dim * cache.page) * value_bytes(type);
}

// Keys of lanes, to where transposed ones are.
template <int type>
inline void copy_keys(const Unit& u, const Tile& tile) {
    const int64_t step = u.args.cache.page * value_bytes(type);
    for (int v = 0; v < kTileVectors; v++) {
        const char* from = lanes_of<type>(u, *tile.here, u.head, v);
        const char* ahead = lanes_of<type>(u, *tile.next, tile.next_head, v);
        for (int32_t d = 0; d < u.args.shape.head_dim; d++, from += step, ahead += step) {
            __builtin_prefetch(ahead, 0, 2);
            store(u.keys_t + d * kTile + 16 * v, read_lanes<type>(from, 0));
        }
    }
}

// The values of keys [first, last) of the tile as [64][dim], float32.
template <int type>
inline void copy_values(const Unit& u, const Tile& tile, int32_t first, int32_t last) {
    const void* values = u.args.cache.v;
    const int32_t dim = u.args.shape.head_dim;
    for (int32_t j = first; j < last; j++) {
        const int64_t at = tile.here->rows[j] + u.head * dim, next = tile.next->rows[j] + tile.next_head * dim;
        float* out = u.values + j * u.dim;
        int32_t d = 0;
        for (; d + 16 <= dim; d += 16) {
            __builtin_prefetch(static_cast<const char*>(values) + (next + d) * value_bytes(type), 0, 2);
            store(out + d, read_lanes<type>(values, at + d));
        }
        if (d < dim) store(out + d, load_cache(values, type, at + d, dim - d));
    }
}

inline F soft_cap(F score, float cap) {
    // cap * tanh(s / cap), tanh x = 1 - 2 / (e^2x + 1).
    const F power = exp(mul(score, set1(2.0f / cap)));
    return mul(set1(cap), sub(set1(1.0f), div(set1(2.0f), add(power, set1(1.0f)))));
}

// Scores of one row, in `vectors` vectors, become weights; returns m and l through stats. A row that sees no key of the
// tile has l = 0. The weights of 8-bit values take their scales along.
template <int type>
inline void soften(const Unit& u, int32_t row, int32_t tile, int vectors, F* scores, float* weights, float* stats) {
    const int32_t position = u.row_position(row), base = tile * kTile;
    const int32_t low = u.first_key(position) - base, high = position + 1 - base;
    const bool sees_all = low <= 0 && high >= 16 * vectors;
    const float cap = u.args.shape.softcap;
    F largest = set1(kMinusInfinity);
    for (int v = 0; v < vectors; v++) {
        if constexpr (type == kCacheI8) scores[v] = mul(scores[v], load(u.key_scales + 16 * v));
        if (cap != 0.0f) scores[v] = soft_cap(scores[v], cap);
        if (!sees_all) scores[v] = keep_lanes(scores[v], low - 16 * v, high - 16 * v, kMinusInfinity);
        largest = max(largest, scores[v]);
    }
    const float m = reduce_max(largest);
    F sum = zero();
    for (int v = 0; v < vectors; v++) {
        F p = exp(sub(scores[v], set1(m)));
        if (!sees_all) p = keep_lanes(p, low - 16 * v, high - 16 * v, 0.0f);
        if constexpr (type == kCacheI8) store(weights + 16 * v, mul(p, load(u.value_scales + 16 * v)));
        else store(weights + 16 * v, p);
        sum = add(sum, p);
    }
    stats[0] = m;
    stats[1] = reduce_add(sum);
}

// How a group of rows reads a tile: in the cache, or, where many rows do, from float32 copies in the scratch, the keys
// [dim][64] and the values [64][dim].
struct Reading {
    const Tile& tile;
    bool keys_in_cache;
    bool values_in_cache;
    int32_t first;  // key that a row sees
};

// rows times vectors sums stay in registers.
template <int type, int rows, int vectors>
inline void weigh_values(const Unit& u, const Reading& from, int32_t d, int32_t last, float* part, int64_t stride) {
    constexpr int64_t bytes = value_bytes(type);
    const int64_t dim = u.args.shape.head_dim;
    const int lanes = static_cast<int>(dim - d);
    const char* values = static_cast<const char*>(u.args.cache.v) + (u.head * dim + d) * bytes;
    const char* ahead = static_cast<const char*>(u.args.cache.v) + (from.tile.next_head * dim + d) * bytes;
    const int64_t *at = from.tile.here->rows, *next = from.tile.next->rows;
    const float *copies = u.values + d, *weights = u.weights;
    F sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = zero();
    const auto add_key = [&](int32_t j, const F* value) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const F p = set1(weights[r * kTile + j]);
            for (int v = 0; v < vectors; v++) sums[r][v] = fma(p, value[v], sums[r][v]);
        }
    };
    F value[vectors];
    if (!from.values_in_cache) {
        for (int32_t j = from.first; j < last; j++) {
            for (int v = 0; v < vectors; v++) value[v] = load(copies + j * u.dim + 16 * v);
            add_key(j, value);
        }
    } else if (lanes < 16 * vectors) {
        for (int32_t j = from.first; j < last; j++) {
            value[0] = load_cache(values + at[j] * bytes, type, 0, lanes);
            add_key(j, value);
        }
    } else {
        for (int32_t j = from.first; j < last; j++) {
            for (int line = 0; line < vectors * 16 * bytes; line += 64)
                __builtin_prefetch(ahead + next[j] * bytes + line, 0, 2);
            for (int v = 0; v < vectors; v++) value[v] = read_lanes<type>(values + at[j] * bytes, 16 * v);
            add_key(j, value);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(part + r * stride + d + 16 * v, sums[r][v]);
}

// Scores of `rows` rows against the keys of vectors first .. first + vectors - 1 of the tile.
template <int type, int rows, int vectors>
inline void score_keys(const Unit& u, const Reading& from, const float* q, int first, F scores[rows][kTileVectors]) {
    const int64_t step = u.args.cache.page * value_bytes(type);
    const int32_t dim = u.args.shape.head_dim, stride = u.dim;
    F sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = zero();
    const auto add_value = [&](int32_t d, const F* keys) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const F value = set1(q[r * stride + d]);
            for (int v = 0; v < vectors; v++) sums[r][v] = fma(value, keys[v], sums[r][v]);
        }
    };
    F keys[vectors];
    if (from.keys_in_cache) {
        const char *lanes[vectors], *ahead[vectors];
        for (int v = 0; v < vectors; v++) {
            lanes[v] = lanes_of<type>(u, *from.tile.here, u.head, first + v);
            ahead[v] = lanes_of<type>(u, *from.tile.next, from.tile.next_head, first + v);
        }
        int64_t at = 0;
        for (int32_t d = 0; d < dim; d++, at += step) {
            for (int v = 0; v < vectors; v++) __builtin_prefetch(ahead[v] + at, 0, 2);
            for (int v = 0; v < vectors; v++) keys[v] = read_lanes<type>(lanes[v] + at, 0);
            add_value(d, keys);
        }
    } else {
        const float* copies = u.keys_t + 16 * first;
        for (int32_t d = 0; d < dim; d++) {
            for (int v = 0; v < vectors; v++) keys[v] = load(copies + d * kTile + 16 * v);
            add_value(d, keys);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) scores[r][first + v] = sums[r][v];
}

// Partial results of rows row .. row + rows - 1 over one tile, of which the last sees keys up to `last`.
template <int type, int rows>
void attend_rows(const Unit& u, const Reading& from, int32_t row, int32_t last, float* part) {
    constexpr int vectors = attend_vectors(rows);
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    const int seen = (last + 15) / 16;
    const float* q = u.queries + row * u.dim;
    part += row * stride;
    F scores[rows][kTileVectors];
    int v = 0;
    for (; v + vectors <= seen; v += vectors) score_keys<type, rows, vectors>(u, from, q, v, scores);
    for (; v < seen; v++) score_keys<type, rows, 1>(u, from, q, v, scores);
    for (int r = 0; r < rows; r++) {
        float* stats = part + r * stride + u.dim;
        soften<type>(u, row + r, from.tile.index, seen, scores[r], u.weights + r * kTile, stats);
    }
    int32_t d = 0;
    for (; d + 16 * vectors <= u.args.shape.head_dim; d += 16 * vectors)
        weigh_values<type, rows, vectors>(u, from, d, last, part, stride);
    for (; d < u.dim; d += 16) weigh_values<type, rows, 1>(u, from, d, last, part, stride);
}

// Few rows read keys in lanes, and values, where they are; many read them often enough to have them widened once.
template <int type>
void attend_tile(const Unit& u, const Tile& tile, float* part) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    const int32_t base = tile.index * kTile;
    const int32_t first = larger(0, u.first_key(u.position) - base);
    const int32_t last = smaller(kTile, u.row_position(u.rows - 1) + 1 - base);
    const bool in_cache = u.rows <= 4;
    const Reading from{tile, in_cache && u.args.cache.keys_in_lanes, in_cache, first};
    if constexpr (type == kCacheI8) load_tile_scales(u, tile, first, last);
    if (!u.args.cache.keys_in_lanes) transpose_keys<type>(u, tile);
    else if (!in_cache) copy_keys<type>(u, tile);
    if (!in_cache) copy_values<type>(u, tile, first, last);
    for (int32_t row = 0; row < u.rows; row += 4) {
        const int32_t count = smaller(4, u.rows - row);
        const int32_t seen = smaller(kTile, u.row_position(row + count - 1) + 1 - base);
        if (seen <= 0) {
            for (int32_t r = row; r < row + count; r++) part[r * stride + u.dim + 1] = 0.0f;
        } else if (count == 4) {
            attend_rows<type, 4>(u, from, row, seen, part);
        } else if (count == 3) {
            attend_rows<type, 3>(u, from, row, seen, part);
        } else if (count == 2) {
            attend_rows<type, 2>(u, from, row, seen, part);
        } else {
            attend_rows<type, 1>(u, from, row, seen, part);
        }
    }
}

using AttendTile = void (*)(const Unit&, const Tile&, float*);
constexpr AttendTile kAttendTile[] = {attend_tile<kCacheF32>, attend_tile<kCacheBF16>, attend_tile<kCacheF16>,
                                      attend_tile<kCacheI8>};

}  // namespace
}  // namespace inferd
