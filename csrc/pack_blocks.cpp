// Packing of the block types whose codes stand in the file as they are.

#include "pack_rows.h"

namespace moonlet {
namespace {

// Bytes [offset, offset + count) of the rows as vectors of quadruples, as halves, as bytes.
template <size_t count>
void copy_quads(const Rows& rows, size_t offset, uint8_t* vectors) {
  for (size_t r = 0; r < kPanelRows; ++r) {
    const uint8_t* from = rows.at(r, offset);
    for (size_t i = 0; i < count / 4; ++i) put32(vectors, i, r, load32(from + 4 * i));
  }
}

void copy_halves(const Rows& rows, size_t offset, uint8_t* halves) {
  for (size_t r = 0; r < kPanelRows; ++r) std::memcpy(halves + 2 * r, rows.at(r, offset), 2);
}

template <size_t count>
void copy_bytes(const Rows& rows, size_t offset, uint8_t* bytes) {
  for (size_t r = 0; r < kPanelRows; ++r) {
    const uint8_t* from = rows.at(r, offset);
    for (size_t k = 0; k < count; ++k) bytes[16 * k + r] = from[k];
  }
}

// The same with every second byte beside the one before.
template <size_t count>
void copy_byte_pairs(const Rows& rows, size_t offset, uint8_t* bytes) {
  for (size_t r = 0; r < kPanelRows; ++r) {
    const uint8_t* from = rows.at(r, offset);
    for (size_t k = 0; k < count; ++k) bytes[32 * (k / 2) + 2 * r + k % 2] = from[k];
  }
}

// Types of 32 columns: block(first, second, r) packs row r of two neighbours; past the end stands a block of zeros.
template <size_t bytes, size_t panel_bytes, class Block>
void pack_pairs(const Rows& rows, size_t columns, uint8_t* panel, const Block& block) {
  static constexpr uint8_t kZeros[bytes] = {};
  const size_t groups = columns / kGroup;
  for (size_t g = 0; g < groups; g += 2, panel += panel_bytes) {
    for (size_t r = 0; r < kPanelRows; ++r) {
      const uint8_t* first = rows.at(r, g * bytes);
      block(first, g + 1 < groups ? first + bytes : kZeros, r, panel);
    }
  }
}

// Byte k of a block holds columns k and k + 16; a nibble plane has the first block in its low halves.
void put_nibbles(const uint8_t* first, const uint8_t* second, size_t r, uint8_t* plane) {
  for (size_t i = 0; i < 4; ++i) {
    const uint32_t a = load32(first + 4 * i), b = load32(second + 4 * i);
    put32(plane, i, r, (a & 0x0f0f0f0f) | (b & 0x0f0f0f0f) << 4);
    put32(plane, i + 4, r, (a >> 4 & 0x0f0f0f0f) | (b & 0xf0f0f0f0));
  }
}

// Bit g of 32 bytes belongs to group g of eight; two planes take four groups each.
void copy_bits(const Rows& rows, size_t offset, uint8_t* planes) {
  for (size_t r = 0; r < kPanelRows; ++r) {
    const uint8_t* from = rows.at(r, offset);
    put_nibbles(from, from + 16, r, planes);
  }
}

// Of 32 bits, those at 4 i + place become bit i of byte `place`.
uint32_t transpose_bits(uint32_t bits) {
  uint32_t out = 0;
  for (uint32_t place = 0; place < 4; ++place) {
    uint32_t x = bits >> place & 0x11111111;
    x = (x | x >> 3) & 0x03030303;
    x = (x | x >> 6) & 0x000f000f;
    out |= ((x | x >> 12) & 0xff) << 8 * place;
  }
  return out;
}

// -m for the m of Q4_1 and Q5_1: panels hold what is subtracted.
uint16_t negative(uint16_t half) { return half ^ 0x8000; }

// Four nibbles -> the low halves of four bytes.
uint32_t widen(uint32_t nibbles) {
  nibbles = (nibbles | nibbles << 8) & 0x00ff00ff;
  return (nibbles | nibbles << 4) & 0x0f0f0f0f;
}

}  // namespace

void pack_q4_0(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_pairs<18, 576>(rows, columns, panel, [](const uint8_t* a, const uint8_t* b, size_t r, uint8_t* out) {
    put_nibbles(a + 2, b + 2, r, out);
    put16(out + 512, r, load16(a));
    put16(out + 544, r, load16(b));
  });
}

void pack_iq4_nl(const Rows& rows, size_t columns, uint8_t* panel) { pack_q4_0(rows, columns, panel); }

void pack_q4_1(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_pairs<20, 640>(rows, columns, panel, [](const uint8_t* a, const uint8_t* b, size_t r, uint8_t* out) {
    put_nibbles(a + 4, b + 4, r, out);
    put16(out + 512, r, load16(a));
    put16(out + 544, r, load16(b));
    put16(out + 576, r, negative(load16(a + 2)));
    put16(out + 608, r, negative(load16(b + 2)));
  });
}

void pack_q5_0(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_pairs<22, 704>(rows, columns, panel, [](const uint8_t* a, const uint8_t* b, size_t r, uint8_t* out) {
    put_nibbles(a + 6, b + 6, r, out);
    put32(out + 512, 0, r, transpose_bits(load32(a + 2)));
    put32(out + 512, 1, r, transpose_bits(load32(b + 2)));
    put16(out + 640, r, load16(a));
    put16(out + 672, r, load16(b));
  });
}

void pack_q5_1(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_pairs<24, 768>(rows, columns, panel, [](const uint8_t* a, const uint8_t* b, size_t r, uint8_t* out) {
    put_nibbles(a + 8, b + 8, r, out);
    put32(out + 512, 0, r, transpose_bits(load32(a + 4)));
    put32(out + 512, 1, r, transpose_bits(load32(b + 4)));
    put16(out + 640, r, load16(a));
    put16(out + 672, r, load16(b));
    put16(out + 704, r, negative(load16(a + 2)));
    put16(out + 736, r, negative(load16(b + 2)));
  });
}

void pack_q8_0(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_pairs<34, 1088>(rows, columns, panel, [](const uint8_t* a, const uint8_t* b, size_t r, uint8_t* out) {
    for (size_t i = 0; i < 8; ++i) {
      put32(out, i, r, load32(a + 2 + 4 * i) ^ 0x80808080);  // q + 128
      put32(out + 512, i, r, load32(b + 2 + 4 * i) ^ 0x80808080);
    }
    put16(out + 1024, r, load16(a));
    put16(out + 1056, r, load16(b));
  });
}

// The scale 2^(e - 128) as bfloat16: below 2^-126 it has no exponent of its own.
void pack_mxfp4(const Rows& rows, size_t columns, uint8_t* panel) {
  const auto scale = [](uint8_t e) { return static_cast<uint16_t>(e < 2 ? 0x20 << e : (e - 1) << 7); };
  pack_pairs<17, 576>(rows, columns, panel, [&](const uint8_t* a, const uint8_t* b, size_t r, uint8_t* out) {
    put_nibbles(a + 1, b + 1, r, out);
    put16(out + 512, r, scale(*a));
    put16(out + 544, r, scale(*b));
  });
}

// Byte k of the packed words holds columns 2 k (low half) and 2 k + 1. Columns may end inside a group: what the last
// words hold beyond them meets activations that are 0. Words may end there too.
void pack_int4(const Rows& rows, size_t columns, uint8_t* panel) {
  const size_t groups = (columns + kGroup - 1) / kGroup, bytes = (columns + 7) / 8 * 4;
  for (size_t g = 0; g < groups; g += 2, panel += 576) {
    for (size_t r = 0; r < kPanelRows; ++r) {
      uint8_t words[32] = {};
      std::memcpy(words, rows.at(r, 16 * g), bytes - 16 * g < 32 ? bytes - 16 * g : 32);
      for (size_t i = 0; i < 8; ++i) {
        put32(panel, i, r, widen(load16(words + 2 * i)) | widen(load16(words + 16 + 2 * i)) << 4);
      }
      const uint16_t* scales = rows.scales + r * rows.scale_stride + g;
      put16(panel + 512, r, scales[0]);
      put16(panel + 544, r, g + 1 < groups ? scales[1] : uint16_t{0});
    }
  }
}

void pack_iq4_xs(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 2176) {
    const size_t block = 136 * b;
    copy_halves(rows, block, panel);
    copy_bytes<6>(rows, block + 2, panel + 32);
    for (size_t r = 0; r < kPanelRows; ++r) {
      const uint8_t* codes = rows.at(r, block + 8);
      for (size_t j = 0; j < 4; ++j) put_nibbles(codes + 32 * j, codes + 32 * j + 16, r, panel + 128 + 512 * j);
    }
  }
}

void pack_tq2_0(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 1056) {
    copy_quads<64>(rows, 66 * b, panel);
    copy_halves(rows, 66 * b + 64, panel + 1024);
  }
}

// Five trits in a byte come off the top by multiplying with 3; here they become the 2-bit codes of TQ2_0.
void pack_tq1_0(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 1056) {
    for (size_t r = 0; r < kPanelRows; ++r) {
      uint8_t left[64] = {}, digits[64], trits[256];
      std::memcpy(left, rows.at(r, 54 * b), 52);
      for (size_t k = 0; k < 5; ++k) {
        for (size_t i = 0; i < 64; ++i) {
          digits[i] = static_cast<uint8_t>((left[i] >= 86) + (left[i] >= 171));  // 3 left / 256
          left[i] = static_cast<uint8_t>(3 * left[i]);
        }
        std::memcpy(trits + 32 * k, digits, 32);
        std::memcpy(trits + 160 + 16 * k, digits + 32, 16);
        if (k < 4) std::memcpy(trits + 240 + 4 * k, digits + 48, 4);
      }
      for (size_t i = 0; i < 16; ++i) {
        const uint8_t* t = trits + 128 * (i / 8) + 4 * (i % 8);
        put32(panel, i, r, load32(t) | load32(t + 32) << 2 | load32(t + 64) << 4 | load32(t + 96) << 6);
      }
    }
    copy_halves(rows, 54 * b + 52, panel + 1024);
  }
}

void pack_q2_k(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 1344) {
    const size_t block = 84 * b;
    copy_halves(rows, block + 80, panel);
    copy_halves(rows, block + 82, panel + 32);
    copy_byte_pairs<16>(rows, block, panel + 64);
    copy_quads<64>(rows, block + 16, panel + 320);
  }
}

void pack_q3_k(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 1760) {
    const size_t block = 110 * b;
    copy_quads<64>(rows, block + 32, panel);
    copy_bits(rows, block, panel + 1024);  // third bits: with them codes are 4 too large
    copy_byte_pairs<12>(rows, block + 96, panel + 1536);
    copy_halves(rows, block + 108, panel + 1728);
  }
}

void pack_q4_k(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 2304) {
    const size_t block = 144 * b;
    copy_halves(rows, block, panel);
    copy_halves(rows, block + 2, panel + 32);
    copy_bytes<12>(rows, block + 4, panel + 64);
    copy_quads<128>(rows, block + 16, panel + 256);
  }
}

void pack_q5_k(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 2816) {
    const size_t block = 176 * b;
    copy_halves(rows, block, panel);
    copy_halves(rows, block + 2, panel + 32);
    copy_bytes<12>(rows, block + 4, panel + 64);
    copy_quads<128>(rows, block + 48, panel + 256);
    copy_bits(rows, block + 16, panel + 2304);
  }
}

void pack_q6_k(const Rows& rows, size_t columns, uint8_t* panel) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 3360) {
    const size_t block = 210 * b;
    copy_quads<128>(rows, block, panel);
    copy_quads<64>(rows, block + 128, panel + 2048);
    copy_bytes<16>(rows, block + 192, panel + 3072);
    copy_halves(rows, block + 208, panel + 3328);
  }
}

}  // namespace moonlet
