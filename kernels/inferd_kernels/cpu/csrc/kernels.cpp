// The ops for one instruction set: build.py compiles this file once for each, naming it by INFERD_ISA.
#include "experts.h"
#include "limits.h"
#include "sampling.h"
#include "stack.h"

#define INFERD_JOIN_(a, b) a##b
#define INFERD_JOIN(a, b) INFERD_JOIN_(a, b)
#define INFERD_TEXT_(a) #a
#define INFERD_TEXT(a) INFERD_TEXT_(a)

namespace inferd {

const Kernels* INFERD_JOIN(kernels_, INFERD_ISA)() {
    static constexpr Kernels kernels = {
        INFERD_TEXT(INFERD_ISA),
        linear,
        embedding,
        run<NormArgs, norm_body>,
        run<ActivateArgs, activate_body>,
        experts,
        run<RopeKvArgs, rope_kv_body>,
        attention,
        sample,
        copy_blocks,
        stack,
        run<LimitsArgs, limits_body>,
        attention_bytes,
    };
    return &kernels;
}

}  // namespace inferd
