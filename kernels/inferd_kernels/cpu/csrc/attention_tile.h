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

// Where the keys of a tile lie in the cache, -1 for those that no row of the unit sees.
inline void locate_keys(const Unit& u, int32_t tile, int64_t at[kTile]) {
    const Cache& cache = u.args.cache;
    const AttentionShape& shape = u.args.shape;
    const int32_t* table = u.args.batch->block_tables + u.sequence * u.args.batch->max_blocks;
    const int32_t first = u.first_key(u.position), last = u.row_position(u.rows - 1);
    const int64_t step = int64_t{shape.kv_heads} * shape.head_dim;
    const int32_t begin = larger(0, first - tile * kTile), end = smaller(kTile, last + 1 - tile * kTile);
    for (int32_t j = 0; j < begin; j++) at[j] = -1;
    for (int32_t j = begin; j < end;) {
        const int32_t key = tile * kTile + j, offset = key % cache.page;
        const int32_t until = smaller(end, j + cache.page - offset);
        int64_t place = (int64_t{table[key / cache.page]} * cache.page + offset) * step + u.head * shape.head_dim;
        for (; j < until; j++, place += step) at[j] = place;
    }
    for (int32_t j = larger(begin, end); j < kTile; j++) at[j] = -1;
}

// Where the keys of a tile lie that are kept in lanes: the first value of each vector, -1 where no row sees one of it.
inline void locate_lanes(const Unit& u, int32_t tile, int64_t at[kTileVectors]) {
    const Cache& cache = u.args.cache;
    const AttentionShape& shape = u.args.shape;
    const int32_t* table = u.args.batch->block_tables + u.sequence * u.args.batch->max_blocks;
    const int32_t first = u.first_key(u.position), last = u.row_position(u.rows - 1);
    for (int v = 0; v < kTileVectors; v++) {
        const int32_t key = tile * kTile + 16 * v;
        const bool is_seen = key + 16 > first && key <= last;
        const int64_t head = is_seen ? int64_t{table[key / cache.page]} * shape.kv_heads + u.head : 0;
        at[v] = is_seen ? head * shape.head_dim * cache.page + key % cache.page : -1;
    }
}

// The keys and values of a tile are what is read next.
inline void look_ahead(const Unit& u, int32_t tile, Ahead& ahead) {
    const Cache& cache = u.args.cache;
    const int64_t bytes = cache.type == kCacheF32 ? 4 : cache.type == kCacheI8 ? 1 : 2;
    const int32_t dim = u.args.shape.head_dim;
    int64_t at[kTile];
    locate_keys(u, tile, at);
    ahead.next = ahead.count = 0;
    if (cache.keys_in_lanes) {
        int64_t lanes[kTileVectors];
        locate_lanes(u, tile, lanes);
        for (int64_t first : lanes) {
            if (first < 0) continue;
            if (cache.page == 16) ahead.add(cache.k, first * bytes, 16 * dim * bytes);
            else for (int32_t d = 0; d < dim; d++) ahead.add(cache.k, (first + d * cache.page) * bytes, 16 * bytes);
        }
    }
    for (int32_t j = 0; j < kTile; j++) {
        if (at[j] < 0) continue;
        if (!cache.keys_in_lanes) ahead.add(cache.k, at[j] * bytes, dim * bytes);
        ahead.add(cache.v, at[j] * bytes, dim * bytes);
    }
}

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
inline void load_tile_scales(const Unit& u, const int64_t at[kTile]) {
    const int32_t dim = u.args.shape.head_dim;
    for (int32_t j = 0; j < kTile; j++) {
        u.key_scales[j] = at[j] < 0 ? 0.0f : u.args.cache.k_scales[at[j] / dim];
        u.value_scales[j] = at[j] < 0 ? 0.0f : u.args.cache.v_scales[at[j] / dim];
    }
}

// Keys that no row sees are read from the start of the cache: their scores are masked.
template <int type>
inline void transpose_keys(const Unit& u, const int64_t at[kTile]) {
    const void* keys = u.args.cache.k;
    const int32_t dim = u.args.shape.head_dim;
    for (int32_t j = 0; j < kTile; j += kSquare) {
        int64_t rows[kSquare];
        for (int i = 0; i < kSquare; i++) rows[i] = larger<int64_t>(at[j + i], 0);
        float* out = u.keys_t + j;
        int32_t d = 0;
        for (; d + kSquare <= dim; d += kSquare, out += kSquare * kTile) {
            S square[kSquare];
            for (int i = 0; i < kSquare; i++) square[i] = read_square<type>(keys, rows[i] + d);
            transpose_square(square);
            for (int i = 0; i < kSquare; i++) store_square(out + i * kTile, square[i]);
        }
        for (; d < u.dim; d++, out += kTile) {
            for (int i = 0; i < kSquare; i++)
                out[i] = d < dim ? first(load_cache(keys, type, rows[i] + d, 1)) : 0.0f;
        }
    }
}

// Keys of lanes, to where transposed ones are.
template <int type>
inline void copy_keys(const Unit& u, const int64_t at[kTileVectors]) {
    const Cache& cache = u.args.cache;
    for (int32_t d = 0; d < u.args.shape.head_dim; d++)
        for (int v = 0; v < kTileVectors; v++)
            store(u.keys_t + d * kTile + 16 * v, read_lanes<type>(cache.k, at[v] + d * cache.page));
}

// The tile's values as [64][dim], float32.
template <int type>
inline void copy_values(const Unit& u, int32_t first_key, int32_t last_key, const int64_t at[kTile]) {
    const void* values = u.args.cache.v;
    const int32_t dim = u.args.shape.head_dim;
    for (int32_t j = first_key; j < last_key; j++) {
        float* out = u.values + j * u.dim;
        int32_t d = 0;
        for (; d + 16 <= dim; d += 16) store(out + d, read_lanes<type>(values, at[j] + d));
        if (d < dim) store(out + d, load_cache(values, type, at[j] + d, dim - d));
    }
}

inline F soft_cap(F score, float cap) {
    // cap * tanh(s / cap), tanh x = 1 - 2 / (e^2x + 1).
    const F power = exp(mul(score, set1(2.0f / cap)));
    return mul(set1(cap), sub(set1(1.0f), div(set1(2.0f), add(power, set1(1.0f)))));
}

// Scores of one row become weights; returns through m and l. A row that sees no key of the tile has l = 0. The weights of
// 8-bit values take their scales along.
template <int type>
inline void soften(const Unit& u, int32_t row, int32_t tile, F scores[kTileVectors], float* weights, float* stats) {
    const int32_t position = u.row_position(row), base = tile * kTile;
    const int32_t low = u.first_key(position) - base, high = position + 1 - base;
    const float cap = u.args.shape.softcap;
    F largest = set1(kMinusInfinity);
    for (int v = 0; v < kTileVectors; v++) {
        if constexpr (type == kCacheI8) scores[v] = mul(scores[v], load(u.key_scales + 16 * v));
        if (cap != 0.0f) scores[v] = soft_cap(scores[v], cap);
        scores[v] = keep_lanes(scores[v], low - 16 * v, high - 16 * v, kMinusInfinity);
        largest = max(largest, scores[v]);
    }
    const float m = reduce_max(largest);
    F sum = zero();
    for (int v = 0; v < kTileVectors; v++) {
        const F p = keep_lanes(exp(sub(scores[v], set1(m))), low - 16 * v, high - 16 * v, 0.0f);
        if constexpr (type == kCacheI8) store(weights + 16 * v, mul(p, load(u.value_scales + 16 * v)));
        else store(weights + 16 * v, p);
        sum = add(sum, p);
    }
    stats[0] = m;
    stats[1] = reduce_add(sum);
}

// Where the keys of a tile are read: in the cache, or in the scratch, [dim][64] float32.
struct Keys {
    bool in_cache;
    int64_t at[kTileVectors];  // in the cache
};

// Value d of the keys of vector v.
template <int type>
inline F load_keys(const Unit& u, const Keys& from, int v, int32_t d) {
    if (!from.in_cache) return load(u.keys_t + d * kTile + 16 * v);
    return read_lanes<type>(u.args.cache.k, from.at[v] + d * u.args.cache.page);
}

// Where the values of a tile are read: in the cache, or, where several row groups read them, in the scratch.
struct Values {
    const int64_t* at;   // in the cache; null: in the scratch
    int32_t first, last;  // the keys that a row sees
};

template <int type>
inline F load_value(const Unit& u, const Values& from, int32_t j, int32_t d) {
    if (!from.at) return load(u.values + j * u.dim + d);
    const int32_t lanes = u.args.shape.head_dim - d;
    if (lanes < 16) return load_cache(u.args.cache.v, type, from.at[j] + d, lanes);
    return read_lanes<type>(u.args.cache.v, from.at[j] + d);
}

// rows times vectors sums stay in registers.
template <int type, int rows, int vectors>
inline void weigh_values(const Unit& u, const Values& from, int32_t d, int32_t keys, float* part, int64_t stride) {
    F sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = zero();
    for (int32_t j = from.first; j < keys; j++) {
        if (j & 1) u.ahead->step();
        F values[vectors];
        for (int v = 0; v < vectors; v++) values[v] = load_value<type>(u, from, j, d + 16 * v);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const F p = set1(u.weights[r * kTile + j]);
            for (int v = 0; v < vectors; v++) sums[r][v] = fma(p, values[v], sums[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(part + r * stride + d + 16 * v, sums[r][v]);
}

// Scores of `rows` rows against the keys of vectors first .. first + vectors - 1 of the tile.
template <int type, int rows, int vectors>
inline void score_keys(const Unit& u, const Keys& from, const float* q, int first, F scores[rows][kTileVectors]) {
    F sums[rows][vectors];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = zero();
    for (int32_t d = 0; d < u.args.shape.head_dim; d++) {
        if (d & 1) u.ahead->step();
        F keys[vectors];
        for (int v = 0; v < vectors; v++) keys[v] = load_keys<type>(u, from, first + v, d);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const F value = set1(q[r * u.dim + d]);
            for (int v = 0; v < vectors; v++) sums[r][v] = fma(value, keys[v], sums[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) scores[r][first + v] = sums[r][v];
}

// Partial results of rows row .. row + rows - 1 over one tile.
template <int type, int rows>
void attend_rows(const Unit& u, const Keys& keys, const Values& values, int32_t tile, int32_t row, float* part) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    part += row * stride;
    F scores[rows][kTileVectors];
    for (int v = 0; v < kTileVectors; v += kAttendVectors)
        score_keys<type, rows, kAttendVectors>(u, keys, u.queries + row * u.dim, v, scores);
    for (int r = 0; r < rows; r++)
        soften<type>(u, row + r, tile, scores[r], u.weights + r * kTile, part + r * stride + u.dim);
    const int32_t last = smaller(kTile, u.row_position(row + rows - 1) + 1 - tile * kTile);
    int32_t d = 0;
    for (; d + 16 * kAttendVectors <= u.dim; d += 16 * kAttendVectors)
        weigh_values<type, rows, kAttendVectors>(u, values, d, last, part, stride);
    for (; d < u.dim; d += 16) weigh_values<type, rows, 1>(u, values, d, last, part, stride);
}

// Few rows read keys in lanes where they are; many read them often enough to have them widened once.
template <int type>
inline Keys prepare_keys(const Unit& u, int32_t tile, const int64_t at[kTile]) {
    Keys keys{false, {}};
    if (!u.args.cache.keys_in_lanes) {
        transpose_keys<type>(u, at);
        return keys;
    }
    locate_lanes(u, tile, keys.at);
    for (int64_t& first : keys.at) first = larger<int64_t>(first, 0);  // what no row sees is masked
    keys.in_cache = u.rows <= 4;
    if (!keys.in_cache) copy_keys<type>(u, keys.at);
    return keys;
}

template <int type>
void attend_tile(const Unit& u, int32_t tile, float* part) {
    const int64_t stride = partial_stride(u.args.shape.head_dim);
    int64_t at[kTile];
    locate_keys(u, tile, at);
    if constexpr (type == kCacheI8) load_tile_scales(u, at);
    const Keys keys = prepare_keys<type>(u, tile, at);
    const int32_t base = tile * kTile;
    Values values{at, larger(0, u.first_key(u.position) - base),
                  smaller(kTile, u.row_position(u.rows - 1) + 1 - base)};
    if (u.rows > 4) {
        copy_values<type>(u, values.first, values.last, at);
        values.at = nullptr;
    }
    for (int32_t row = 0; row < u.rows; row += 4) {
        const int32_t count = smaller(4, u.rows - row);
        if (u.row_position(row + count - 1) < base) {
            for (int32_t r = row; r < row + count; r++) part[r * stride + u.dim + 1] = 0.0f;
        } else if (count == 4) {
            attend_rows<type, 4>(u, keys, values, tile, row, part);
        } else if (count == 3) {
            attend_rows<type, 3>(u, keys, values, tile, row, part);
        } else if (count == 2) {
            attend_rows<type, 2>(u, keys, values, tile, row, part);
        } else {
            attend_rows<type, 1>(u, keys, values, tile, row, part);
        }
    }
    while (u.ahead->next < u.ahead->count) u.ahead->step();
}

using AttendTile = void (*)(const Unit&, int32_t, float*);
constexpr AttendTile kAttendTile[] = {attend_tile<kCacheF32>, attend_tile<kCacheBF16>, attend_tile<kCacheF16>,
                                      attend_tile<kCacheI8>};

}  // namespace
}  // namespace inferd
