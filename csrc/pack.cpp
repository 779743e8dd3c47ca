#include "pack.h"

#include <cmath>
#include <cstring>

namespace moonlet {
namespace {

constexpr size_t kRows = kPanelRows;

// Writes 32 codes of row r as the 8 quadruples that vectors 0..7 of a group hold for it.
void spread(const uint8_t* codes, size_t r, uint8_t* vectors) {
  for (size_t i = 0; i < 8; ++i) std::memcpy(vectors + 64 * i + 4 * r, codes + 4 * i, 4);
}

// Two groups of 32 codes below 16 -> one nibble plane of 512 bytes, the first group in the low halves.
void spread_nibbles(const uint8_t* first, const uint8_t* second, size_t r, uint8_t* plane) {
  uint8_t pairs[32];
  for (size_t k = 0; k < 32; ++k) pairs[k] = static_cast<uint8_t>(first[k] | second[k] << 4);
  spread(pairs, r, plane);
}

// GGUF's order: byte k holds values k (low half) and k + half (high half).
void split_nibbles(const uint8_t* bytes, size_t half, uint8_t* codes) {
  for (size_t k = 0; k < half; ++k) {
    codes[k] = bytes[k] & 15;
    codes[k + half] = bytes[k] >> 4;
  }
}

void pack_q4_0(const uint8_t* row, const uint16_t*, size_t columns, size_t r, uint8_t* panel) {
  const size_t groups = columns / 32;
  for (size_t g = 0; g < groups; g += 2, panel += 576) {
    uint8_t codes[2][32] = {};
    for (size_t h = 0; h < 2 && g + h < groups; ++h) {
      const uint8_t* block = row + 18 * (g + h);
      std::memcpy(panel + 512 + 32 * h + 2 * r, block, 2);
      split_nibbles(block + 2, 16, codes[h]);
    }
    spread_nibbles(codes[0], codes[1], r, panel);
  }
}

// Byte k of the packed words holds columns 2k (low half) and 2k + 1; columns may end inside a group.
void pack_int4(const uint8_t* row, const uint16_t* scales, size_t columns, size_t r, uint8_t* panel) {
  const size_t groups = (columns + 31) / 32;
  for (size_t g = 0; g < groups; g += 2, panel += 576) {
    uint8_t codes[2][32] = {};
    for (size_t h = 0; h < 2 && g + h < groups; ++h) {
      std::memcpy(panel + 512 + 32 * h + 2 * r, scales + g + h, 2);
      const size_t start = 32 * (g + h), count = columns - start < 32 ? columns - start : 32;
      const uint8_t* bytes = row + start / 2;
      for (size_t k = 0; k < count; ++k) codes[h][k] = k % 2 ? bytes[k / 2] >> 4 : bytes[k / 2] & 15;
    }
    spread_nibbles(codes[0], codes[1], r, panel);
  }
}

void pack_q8_0(const uint8_t* row, const uint16_t*, size_t columns, size_t r, uint8_t* panel) {
  for (size_t g = 0; g < columns / 32; ++g, row += 34, panel += 544) {
    uint8_t codes[32];
    for (size_t k = 0; k < 32; ++k) codes[k] = row[2 + k] ^ 0x80;  // q + 128
    spread(codes, r, panel);
    std::memcpy(panel + 512 + 2 * r, row, 2);
  }
}

void pack_q4_k(const uint8_t* row, const uint16_t*, size_t columns, size_t r, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, row += 144, panel += 2304) {
    std::memcpy(panel + 2 * r, row, 2);           // d
    std::memcpy(panel + 32 + 2 * r, row + 2, 2);  // dmin
    for (size_t k = 0; k < 12; ++k) panel[64 + 16 * k + r] = row[4 + k];
    // Stored nibbles already pair group 2 j (low) with group 2 j + 1 (high).
    for (size_t j = 0; j < 4; ++j) spread(row + 16 + 32 * j, r, panel + 256 + 512 * j);
  }
}

template <size_t size>
void pack_floats(const uint8_t* row, const uint16_t*, size_t columns, size_t r, uint8_t* panel) {
  for (size_t c = 0; c < columns; ++c) std::memcpy(panel + (c * kRows + r) * size, row + c * size, size);
}

using PackRow = void (*)(const uint8_t* row, const uint16_t* scales, size_t columns, size_t r, uint8_t* panel);

constexpr PackRow kPackRow[] = {pack_floats<4>, pack_floats<2>, pack_floats<2>, pack_q4_0, pack_int4, pack_q8_0,
                                pack_q4_k};

constexpr uint8_t id(Format format) { return static_cast<uint8_t>(format); }
constexpr uint8_t id(FloatFormat format) { return static_cast<uint8_t>(format); }

constexpr StoredInfo kStored[] = {
    {"F32", 1, 4, true, id(FloatFormat::kF32)},    {"F16", 1, 2, true, id(FloatFormat::kF16)},
    {"BF16", 1, 2, true, id(FloatFormat::kBF16)},  {"Q4_0", 32, 18, false, id(Format::kQ4_0)},
    {"INT4", 2, 1, false, id(Format::kInt4)},      {"Q8_0", 32, 34, false, id(Format::kQ8_0)},
    {"Q4_K", 256, 144, false, id(Format::kQ4_K)},
};
static_assert(sizeof(kStored) / sizeof(kStored[0]) == static_cast<size_t>(Stored::kCount));
static_assert(sizeof(kPackRow) / sizeof(kPackRow[0]) == static_cast<size_t>(Stored::kCount));

// float16 bits, rounded to nearest even; too large becomes infinite.
uint16_t half_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (magnitude < 0x38800000) {  // subnormal: a multiple of 2^-24
    const float scaled = std::fabs(value) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(scaled)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  float value;
  uint32_t bits = rest >= 0x7c00 ? (rest << 13) + (224u << 23) : (rest << 13) + (112u << 23);
  std::memcpy(&value, &bits, 4);
  if (rest < 0x400) value = static_cast<float>(rest) * 0x1p-24f;
  return sign ? -value : value;
}

float load_value(Stored type, const uint8_t* p) {
  if (type == Stored::kF32) {
    float value;
    std::memcpy(&value, p, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  if (type == Stored::kF16) return float_of_half(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

}  // namespace

const StoredInfo& info(Stored type) { return kStored[static_cast<size_t>(type)]; }

const Stored* find_stored(const char* name) {
  static constexpr Stored kAll[] = {Stored::kF32,  Stored::kF16,  Stored::kBF16, Stored::kQ4_0,
                                    Stored::kInt4, Stored::kQ8_0, Stored::kQ4_K};
  for (const Stored& type : kAll) {
    if (std::strcmp(info(type).name, name) == 0) return &type;
  }
  return nullptr;
}

PanelShape panel_shape(bool is_float, uint8_t format, size_t columns) {
  constexpr size_t kFloatBytes[] = {4, 2, 2};
  struct Block { size_t columns, bytes; };
  constexpr Block kBlocks[] = {{64, 576}, {64, 576}, {32, 544}, {256, 2304}};
  const Block block = is_float ? Block{kGroup, kGroup * kRows * kFloatBytes[format]} : kBlocks[format];
  return {(columns + block.columns - 1) / block.columns, block.bytes, block.columns};
}

void pack_panel(Stored type, const uint8_t* rows, size_t row_bytes, const uint16_t* scales, size_t row_count,
                size_t columns, uint8_t* panel) {
  const StoredInfo& stored = info(type);
  if (row_count < kRows || columns % panel_shape(stored.is_float, stored.format, columns).block_columns != 0) {
    std::memset(panel, 0, panel_shape(stored.is_float, stored.format, columns).bytes());
  }
  const size_t scale_count = (columns + 31) / 32;
  for (size_t r = 0; r < row_count; ++r) {
    kPackRow[static_cast<size_t>(type)](rows + r * row_bytes, scales ? scales + r * scale_count : nullptr, columns, r,
                                        panel);
  }
}

void quantize_panel(Stored type, const uint8_t* rows, size_t row_bytes, size_t row_count, size_t columns,
                    uint8_t* panel) {
  const size_t size = info(type).bytes;
  std::memset(panel, 0, panel_shape(false, id(Format::kQ8_0), columns).bytes());
  for (size_t r = 0; r < row_count; ++r) {
    for (size_t start = 0; start < columns; start += 32) {
      const size_t count = columns - start < 32 ? columns - start : 32;
      float values[32] = {}, absmax = 0;
      for (size_t k = 0; k < count; ++k) {
        values[k] = load_value(type, rows + r * row_bytes + (start + k) * size);
        absmax = std::fmax(absmax, std::fabs(values[k]));
      }
      const uint16_t half = half_of_float(absmax / 127.0f);
      const float scale = float_of_half(half), inverse = scale > 0 ? 1.0f / scale : 0.0f;
      uint8_t codes[32];
      for (size_t k = 0; k < 32; ++k) {
        const float code = std::fmin(127.0f, std::fmax(-127.0f, std::nearbyint(values[k] * inverse)));
        codes[k] = static_cast<uint8_t>(static_cast<int>(code) + 128);
      }
      uint8_t* block = panel + start / 32 * 544;
      spread(codes, r, block);
      std::memcpy(block + 512 + 2 * r, &half, 2);
    }
  }
}

}  // namespace moonlet
