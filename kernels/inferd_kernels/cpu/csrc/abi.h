// What crosses the C ABI: plain structs that the Python side mirrors field by field (library.py), and the ops' table.
//
// Shapes: T rows, E width, N x K weight, Hq/Hk heads, D head dim, P page. All activations are float32, contiguous.
#pragma once
#include <cstddef>
#include <cstdint>

#include "threads.h"

namespace inferd {

enum Format : int32_t { F32 = 0, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, kFormats };
enum CacheType : int32_t { kCacheF32 = 0, kCacheBF16, kCacheF16, kCacheI8 };

// A packed [n, k] matrix (layout.h).
struct Weight {
    const uint8_t* data;
    int32_t format;
    int32_t n;
    int32_t k;
};

struct LinearArgs {
    const float* x;  // [rows, k]
    const Weight* weight;
    const float* bias;  // [n] or null
    float* y;           // [rows, n]
    int64_t rows;
};

struct EmbeddingArgs {
    const int64_t* ids;
    const Weight* weight;
    float* out;  // [rows, k]
    int64_t rows;
};

struct NormArgs {
    const float* x;         // [rows, width]
    const float* residual;  // [rows, width] or null
    const float* weight;    // [width]
    float* normed;          // [rows, width]
    float* hidden;          // [rows, width], x + residual; unused without residual
    int64_t rows;
    int32_t width;
    float eps;
};

enum Activation : int32_t { kSilu = 0, kGelu, kGeluTanh, kRelu, kRelu2, kClampedSwiglu, kActivations };

struct ActivateArgs {
    const float* x;  // [rows, width], or with gated [rows, 2 * width], gate | up
    float* out;      // [rows, width]
    int64_t rows;
    int32_t width;
    int32_t activation;
    int32_t gated;
};

struct ExpertsArgs {
    const float* x;             // [tokens, width]
    const int32_t* ids;         // [tokens, top_k]
    const float* weights;       // [tokens, top_k]
    const Weight* gate_up;      // per expert [2 intermediate, width]
    const Weight* down;         // per expert [width, intermediate]
    const float* gate_up_bias;  // [num_experts, 2 intermediate] or null
    const float* down_bias;     // [num_experts, width] or null
    float* y;                   // [tokens, width]
    int64_t tokens;
    int32_t top_k;
    int32_t num_experts;
    int32_t width;
    int32_t intermediate;
    int32_t activation;
};

struct Batch {
    const int64_t* positions;     // [tokens]
    const int64_t* slots;         // [tokens], -1 writes nothing
    const int32_t* cu_seqlens;    // [sequences + 1]
    const int32_t* seq_lens;      // [sequences]
    const int32_t* block_tables;  // [sequences, max_blocks]
    int64_t tokens;
    int64_t sequences;
    int64_t max_blocks;
};

struct Cache {
    void* k;  // [blocks, page, kv_heads, head_dim], or with keys_in_lanes [blocks, kv_heads, head_dim, page]
    void* v;  // [blocks, page, kv_heads, head_dim]
    float* k_scales;  // [blocks, page, kv_heads], of 8-bit values alone: value times scale
    float* v_scales;
    int32_t page;
    int32_t type;  // CacheType
    int32_t keys_in_lanes;  // pages are whole vectors then
};

struct AttentionShape {
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t window;  // 0: full
    float scale;
    float softcap;  // 0: none
};

struct Rope {
    const float* cos_sin;  // [max_positions, rotary_dim], cos | sin; null: no rotation
    const float* q_norm;   // [head_dim] or null
    const float* k_norm;
    int32_t rotary_dim;
    float norm_eps;
};

// How one layer attends, and the cache that it reads and writes.
struct Attention {
    Cache cache;
    AttentionShape shape;
    Rope rope;
    const float* sinks;  // [heads] or null: logits that join the softmax and carry no value
};

struct RopeKvArgs : Attention {
    const float* qkv;  // [tokens, (Hq + 2 Hk) D]
    float* q;          // [tokens, Hq, D]
    const Batch* batch;
};

struct AttentionArgs : Attention {
    const float* q;  // [tokens, Hq, D]
    float* out;
    const Batch* batch;
};

struct SampleArgs {
    const float* logits;  // [rows, vocab]
    int64_t* ids;
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const int64_t* seeds;
    const int32_t* choices;
    const int64_t* positions;
    int64_t rows;
    int64_t vocab;
};

// All copies are made at the same time: no destination is a source or a second time a destination.
struct CopyArgs {
    uint8_t* cache;
    const int64_t* sources;
    const int64_t* destinations;
    int64_t pairs;
    int64_t blocks;
    int64_t block_bytes;
};

// Row blocks of one projection, each in a format of its own.
struct Linear {
    Weight parts[3];
    int32_t num_parts;
    int32_t n;          // of all parts
    const float* bias;  // [n] or null
};

struct Layer {
    Linear qkv, o, gate_up, down;
    const float* attention_norm;
    const float* mlp_norm;
    Attention attention;
};

enum Limit : int32_t { kReadBytes = 0, kFloatRounds, kByteRounds };

// amount: bytes of memory to read, or rounds per thread of 12 operations on 16 lanes (limits.h).
struct LimitsArgs {
    const uint8_t* memory;
    uint8_t* out;  // 64 bytes per thread
    int64_t amount;
    int32_t kind;
};

struct StackArgs {
    float* hidden;  // [tokens, width]: embeddings in, residual stream after the last layer out
    const Layer* layers;
    const Batch* batch;
    int32_t num_layers;
    int32_t width;
    int32_t intermediate;
    float eps;
};

// What an op returns beside 0.
constexpr int kNoMemory = -1;    // scratch could not be had
constexpr int kOutOfRange = -2;  // an id or a block is outside its table; nothing was written

struct Kernels {
    const char* isa;
    int (*linear)(Engine*, const LinearArgs&);
    int (*embedding)(Engine*, const EmbeddingArgs&);
    int (*norm)(Engine*, const NormArgs&);
    int (*activate)(Engine*, const ActivateArgs&);
    int (*experts)(Engine*, const ExpertsArgs&);
    int (*rope_kv)(Engine*, const RopeKvArgs&);
    int (*attention)(Engine*, const AttentionArgs&);
    int (*sample)(Engine*, const SampleArgs&);
    int (*copy_blocks)(Engine*, const CopyArgs&);
    int (*stack)(Engine*, const StackArgs&);
    int (*limits)(Engine*, const LimitsArgs&);
    int64_t (*attention_bytes)(Engine*, const AttentionShape&);
};

const Kernels* kernels_baseline();
#if defined(__x86_64__)
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
#endif

}  // namespace inferd
