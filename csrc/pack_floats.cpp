// Packing of floats, as they are or rounded to Q8_0.

#include "pack_rows.h"

namespace moonlet {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rounds to the nearest integer, halves to even, for |x| below 2^22.
float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

// float16 bits, rounded to nearest even; too large becomes infinite.
uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (magnitude < 0x38800000) {  // subnormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(nearest(float_of(magnitude) * 0x1p24f)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  const uint32_t wide = (rest << 13) + ((rest >= 0x7c00 ? 224u : 112u) << 23);
  const uint32_t small = bits_of(static_cast<float>(rest) * 0x1p-24f);  // subnormal
  return float_of(sign | (rest < 0x400 ? small : wide));
}

struct F32 {
  using Bits = uint32_t;
  static float load(Bits bits) { return float_of(bits); }
};
struct F16 {
  using Bits = uint16_t;
  static float load(Bits bits) { return float_of_half(bits); }
};
struct BF16 {
  using Bits = uint16_t;
  static float load(Bits bits) { return float_of(static_cast<uint32_t>(bits) << 16); }
};

// 32 values -> codes + 128 and their scale, absmax / 127. A group with a NaN or an infinity gets the scale NaN.
uint16_t quantize_group(const float* values, uint8_t* codes) {
  int32_t largest = 0;  // magnitudes of floats are ordered as their bits are
  for (size_t k = 0; k < kGroup; ++k) {
    const int32_t magnitude = static_cast<int32_t>(bits_of(values[k]) & 0x7fffffff);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float absmax = float_of(static_cast<uint32_t>(largest));
  const uint16_t half = largest < 0x7f800000 ? half_of_float(absmax / 127.0f) : uint16_t{0x7e00};
  if (half == 0 || half >= 0x7c00) {
    std::memset(codes, 128, kGroup);
    return half;
  }
  const float inverse = 1.0f / float_of_half(half);
  for (size_t k = 0; k < kGroup; ++k) {
    float code = values[k] * inverse;  // may be too large: the scale was rounded, and a very small one by much
    code = code > 127.0f ? 127.0f : code;
    code = code < -127.0f ? -127.0f : code;
    codes[k] = static_cast<uint8_t>(static_cast<int32_t>(nearest(code)) + 128);
  }
  return half;
}

template <class Float>
void quantize_rows(const Rows& rows, size_t columns, uint8_t* panel) {
  using Bits = typename Float::Bits;
  for (size_t start = 0; start < (columns + 63) / 64 * 64; start += 32) {
    const size_t count = start >= columns ? 0 : columns - start < kGroup ? columns - start : kGroup;
    uint8_t* block = panel + start / 64 * 1088;
    const size_t g = start / 32 % 2;
    for (size_t r = 0; r < kPanelRows; ++r) {
      Bits bits[kGroup] = {};
      if (count == kGroup) std::memcpy(bits, rows.at(r, start * sizeof(Bits)), sizeof(bits));
      else if (count > 0) std::memcpy(bits, rows.at(r, start * sizeof(Bits)), count * sizeof(Bits));
      float values[kGroup];
      uint8_t codes[kGroup];
      for (size_t k = 0; k < kGroup; ++k) values[k] = Float::load(bits[k]);
      put16(block + 1024 + 32 * g, r, quantize_group(values, codes));
      for (size_t i = 0; i < 8; ++i) put32(block + 512 * g, i, r, load32(codes + 4 * i));
    }
  }
}

// [column][16 rows]; 16 columns at a time, so that every cache line is read and written once.
template <class Bits>
void transpose(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t start = 0; start < columns; start += 16) {
    const size_t count = columns - start < 16 ? columns - start : 16;
    Bits tile[16][kPanelRows];
    for (size_t r = 0; r < kPanelRows; ++r) {
      Bits values[16] = {};
      std::memcpy(values, rows.at(r, start * sizeof(Bits)), count * sizeof(Bits));
      for (size_t c = 0; c < 16; ++c) tile[c][r] = values[c];
    }
    std::memcpy(panel + start * sizeof(tile[0]), tile, count * sizeof(tile[0]));
  }
  const size_t padding = (kGroup - columns % kGroup) % kGroup;
  std::memset(panel + columns * kPanelRows * sizeof(Bits), 0, padding * kPanelRows * sizeof(Bits));
}

}  // namespace

void pack_4_bytes(const Rows& rows, size_t columns, uint8_t* panel) { transpose<uint32_t>(rows, columns, panel); }
void pack_2_bytes(const Rows& rows, size_t columns, uint8_t* panel) { transpose<uint16_t>(rows, columns, panel); }
void quantize_f32(const Rows& rows, size_t columns, uint8_t* panel) { quantize_rows<F32>(rows, columns, panel); }
void quantize_f16(const Rows& rows, size_t columns, uint8_t* panel) { quantize_rows<F16>(rows, columns, panel); }
void quantize_bf16(const Rows& rows, size_t columns, uint8_t* panel) { quantize_rows<BF16>(rows, columns, panel); }

}  // namespace moonlet
