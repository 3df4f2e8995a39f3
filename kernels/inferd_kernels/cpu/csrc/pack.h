// Repacking of ggml rows and float matrices into panels (layout.h), once at load.
#pragma once
#include "abi.h"

namespace inferd {

// Rows of `source`: ggml blocks of `format`, or float32 / bfloat16 values. `packed` holds packed_bytes(...).
struct PackArgs {
    const uint8_t* source;
    uint8_t* packed;
    int64_t row_bytes;
    int32_t format;
    int32_t n;
    int32_t k;
};

size_t packed_bytes(int32_t format, int64_t n, int64_t k);
void pack(Engine* engine, const PackArgs& args);

}  // namespace inferd
