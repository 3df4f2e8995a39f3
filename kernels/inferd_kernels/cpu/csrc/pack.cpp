#include "pack.h"

#include <cstring>

#include "layout.h"

namespace inferd {

namespace {

// 256 (or 32) values of one row as unsigned integers and the raw bits of their scales.
struct Group {
    uint8_t values[kGroup];
    uint8_t scale[2];    // kSuper: scale, minimum; kSuper16: the scales of both halves
    uint16_t halves[2];  // f16: d and, if any, m or dmin
};

void read_nibbles(const uint8_t* nibbles, uint8_t* values) {
    for (int i = 0; i < 16; i++) {
        values[i] = nibbles[i] & 0x0F;
        values[i + 16] = nibbles[i] >> 4;
    }
}

void read_fifth_bits(const uint8_t* bits, uint8_t* values) {
    for (int i = 0; i < kGroup; i++) values[i] |= (bits[i / 8] >> (i % 8) & 1) << 4;
}

// The 6-bit scale and minimum `index` of a Q4_K or Q5_K super block, packed in 12 bytes.
void read_super_scale(const uint8_t* s, int index, uint8_t out[2]) {
    if (index < 4) {
        out[0] = s[index] & 63;
        out[1] = s[index + 4] & 63;
    } else {
        out[0] = (s[index + 4] & 0x0F) | (s[index - 4] >> 6) << 4;
        out[1] = s[index + 4] >> 4 | (s[index] >> 6) << 4;
    }
}

void read_super4(const uint8_t* block, int index, bool fifth, Group& out) {
    std::memcpy(out.halves, block, 4);
    read_super_scale(block + 4, index, out.scale);
    const uint8_t* high = block + 16;
    const uint8_t* nibbles = block + (fifth ? 48 : 16) + index / 2 * 32;
    for (int i = 0; i < kGroup; i++) {
        out.values[i] = index % 2 ? nibbles[i] >> 4 : nibbles[i] & 0x0F;
        if (fifth) out.values[i] |= (high[i] >> index & 1) << 4;
    }
}

void read_super6(const uint8_t* block, int index, Group& out) {
    const int half = index / 4, quarter = index % 4;
    const uint8_t* low = block + 64 * half + 32 * (quarter & 1);
    const uint8_t* high = block + 128 + 32 * half;
    for (int i = 0; i < kGroup; i++) {
        const uint8_t nibble = quarter < 2 ? low[i] & 0x0F : low[i] >> 4;
        out.values[i] = static_cast<uint8_t>(nibble | (high[i] >> (2 * quarter) & 3) << 4);
    }
    std::memcpy(out.scale, block + 192 + 2 * index, 2);
    std::memcpy(out.halves, block + 208, 2);
}

Group read_group(int32_t format, const uint8_t* row, int64_t g) {
    Group out{};
    const int64_t super = g / 8;
    const int index = static_cast<int>(g % 8);
    switch (format) {
        case Q4_0:
            std::memcpy(out.halves, row + 18 * g, 2);
            read_nibbles(row + 18 * g + 2, out.values);
            break;
        case Q4_1:
            std::memcpy(out.halves, row + 20 * g, 4);
            read_nibbles(row + 20 * g + 4, out.values);
            break;
        case Q5_0:
            std::memcpy(out.halves, row + 22 * g, 2);
            read_nibbles(row + 22 * g + 6, out.values);
            read_fifth_bits(row + 22 * g + 2, out.values);
            break;
        case Q5_1:
            std::memcpy(out.halves, row + 24 * g, 4);
            read_nibbles(row + 24 * g + 8, out.values);
            read_fifth_bits(row + 24 * g + 4, out.values);
            break;
        case Q8_0:
            std::memcpy(out.halves, row + 34 * g, 2);
            for (int i = 0; i < kGroup; i++) out.values[i] = static_cast<uint8_t>(row[34 * g + 2 + i] ^ 0x80);
            break;
        case Q4_K: read_super4(row + 144 * super, index, false, out); break;
        case Q5_K: read_super4(row + 176 * super, index, true, out); break;
        default: read_super6(row + 210 * super, index, out); break;
    }
    return out;
}

void write_values(const Layout& layout, const uint8_t* values, int lane, uint8_t* record) {
    for (int i = 0; i < kGroup; i++) {
        const int quad = i / 4, byte = 4 * lane + i % 4;
        if (layout.bits == 8) {
            record[64 * quad + byte] = values[i];
            continue;
        }
        record[64 * (quad % 4) + byte] |= static_cast<uint8_t>((values[i] & 0x0F) << (quad < 4 ? 0 : 4));
        if (layout.bits == 5) record[256 + byte] |= static_cast<uint8_t>((values[i] >> 4) << quad);
        if (layout.bits == 6)
            record[256 + 64 * (quad / 4) + byte] |= static_cast<uint8_t>((values[i] >> 4) << (2 * (quad % 4)));
    }
}

void write_scales(Scales kind, const Group& group, int64_t g, int lane, uint8_t* panel) {
    const bool super = kind == Scales::kSuper || kind == Scales::kSuper16;
    const int halves = kind == Scales::kAsymmetric || kind == Scales::kSuper ? 2 : 1;
    uint8_t* at = panel + (super ? g / 8 * (32 * halves + 8 * 32) : g * 32 * halves);
    for (int i = 0; i < halves; i++) std::memcpy(at + 32 * i + 2 * lane, &group.halves[i], 2);
    if (super) {
        at += 32 * halves + g % 8 * 32 + lane;
        at[0] = group.scale[0];
        at[16] = group.scale[1];
    }
}

void pack_quantized(const PackArgs& args, int64_t n, uint8_t* panel) {
    const Layout layout = kLayouts[args.format];
    const int64_t groups = args.k / kGroup;
    uint8_t* records = panel + records_at(layout.scales, groups);
    const int lane = static_cast<int>(n % kLanes);
    for (int64_t g = 0; g < groups; g++) {
        const Group group = read_group(args.format, args.source + n * args.row_bytes, g);
        write_values(layout, group.values, lane, records + g * 64 * layout.bits);
        write_scales(layout.scales, group, g, lane, panel);
    }
}

void pack_float(const PackArgs& args, int64_t n, uint8_t* panel) {
    const size_t bytes = args.format == F32 ? 4 : 2;
    for (int64_t i = 0; i < args.k; i++)
        std::memcpy(panel + (i * kLanes + n % kLanes) * bytes, args.source + n * args.row_bytes + i * bytes, bytes);
}

void pack_body(Team& team, void* context) {
    const PackArgs& args = *static_cast<const PackArgs*>(context);
    const size_t bytes = panel_bytes(args.format, args.k);
    team_for(team, (args.n + kLanes - 1) / kLanes, [&](int64_t p) {
        uint8_t* panel = args.packed + p * bytes;
        std::memset(panel, 0, bytes);
        for (int64_t n = p * kLanes; n < (p + 1) * kLanes && n < args.n; n++) {
            if (kLayouts[args.format].scales == Scales::kNone) pack_float(args, n, panel);
            else pack_quantized(args, n, panel);
        }
    });
}

}  // namespace

size_t packed_bytes(int32_t format, int64_t n, int64_t k) { return (n + kLanes - 1) / kLanes * panel_bytes(format, k); }

void pack(Engine* engine, const PackArgs& args) { engine_run(engine, pack_body, const_cast<PackArgs*>(&args)); }

}  // namespace inferd
