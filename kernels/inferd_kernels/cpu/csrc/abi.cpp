// The C ABI, called through ctypes: an engine is the ops of one instruction set with a team of threads.
#include <cstring>

#include "abi.h"
#include "pack.h"

using namespace inferd;

struct InferdEngine {
    Engine* team;
    const Kernels* kernels;
};

namespace {

const Kernels* find_kernels(const char* isa) {
    const bool any = isa[0] == 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512 && (any || std::strcmp(isa, "avx512") == 0)) return kernels_avx512();
    if (avx2 && (any || std::strcmp(isa, "avx2") == 0)) return kernels_avx2();
#endif
    return any || std::strcmp(isa, "baseline") == 0 ? kernels_baseline() : nullptr;
}

template <class Args>
int call(InferdEngine* engine, int (*Kernels::*op)(Engine*, const Args&), const Args* args) {
    engine_lock(engine->team);
    const int status = (engine->kernels->*op)(engine->team, *args);
    engine_unlock(engine->team);
    return status;
}

}  // namespace

#define INFERD_EXPORT extern "C" __attribute__((visibility("default")))

// isa: "avx512", "avx2", "baseline", or "" for the best one. Null when this processor lacks it.
INFERD_EXPORT InferdEngine* inferd_create(const char* isa, int threads) {
    const Kernels* kernels = find_kernels(isa);
    return kernels ? new InferdEngine{engine_create(threads), kernels} : nullptr;
}

INFERD_EXPORT void inferd_destroy(InferdEngine* engine) {
    engine_destroy(engine->team);
    delete engine;
}

INFERD_EXPORT const char* inferd_isa(const InferdEngine* engine) { return engine->kernels->isa; }

INFERD_EXPORT size_t inferd_packed_bytes(int32_t format, int64_t n, int64_t k) { return packed_bytes(format, n, k); }

INFERD_EXPORT int inferd_pack(InferdEngine* engine, const PackArgs* args) {
    engine_lock(engine->team);
    pack(engine->team, *args);
    engine_unlock(engine->team);
    return 0;
}

// Of an attention of this shape over any batch, but for 12 bytes a block of its query rows.
INFERD_EXPORT int64_t inferd_attention_bytes(InferdEngine* engine, const AttentionShape* shape) {
    return engine->kernels->attention_bytes(engine->team, *shape);
}

INFERD_EXPORT size_t inferd_scratch_bytes(InferdEngine* engine) {
    engine_lock(engine->team);
    const size_t bytes = engine_scratch_bytes(engine->team);
    engine_unlock(engine->team);
    return bytes;
}

INFERD_EXPORT void inferd_release(InferdEngine* engine) {
    engine_lock(engine->team);
    engine_release(engine->team);
    engine_unlock(engine->team);
}

#define INFERD_OP(name, Args) \
    INFERD_EXPORT int inferd_##name(InferdEngine* engine, const Args* args) { return call(engine, &Kernels::name, args); }

INFERD_OP(linear, LinearArgs)
INFERD_OP(embedding, EmbeddingArgs)
INFERD_OP(norm, NormArgs)
INFERD_OP(activate, ActivateArgs)
INFERD_OP(experts, ExpertsArgs)
INFERD_OP(rope_kv, RopeKvArgs)
INFERD_OP(attention, AttentionArgs)
INFERD_OP(sample, SampleArgs)
INFERD_OP(copy_blocks, CopyArgs)
INFERD_OP(stack, StackArgs)
INFERD_OP(limits, LimitsArgs)
