// One function for each stored type: 16 rows -> one panel. What they share.

#pragma once

#include <cstring>

#include "pack.h"

namespace moonlet {

using PackRows = void(const Rows& rows, size_t columns, uint8_t* panel);

PackRows pack_q4_0, pack_int4, pack_q4_1, pack_q5_0, pack_q5_1, pack_q8_0, pack_mxfp4, pack_iq4_nl, pack_iq4_xs;
PackRows pack_tq1_0, pack_tq2_0, pack_q2_k, pack_q3_k, pack_q4_k, pack_q5_k, pack_q6_k;
PackRows pack_iq1_s, pack_iq1_m, pack_iq2_xxs, pack_iq2_xs, pack_iq2_s, pack_iq3_xxs, pack_iq3_s;
PackRows pack_4_bytes, pack_2_bytes, quantize_f32, quantize_f16, quantize_bf16;

inline uint32_t load32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, 4);
  return value;
}

inline uint16_t load16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

// The place of quadruple i (columns 4 i .. 4 i + 3) of row r in a run of vectors.
inline void put32(uint8_t* vectors, size_t i, size_t r, uint32_t quad) {
  std::memcpy(vectors + 64 * i + 4 * r, &quad, 4);
}

inline void put16(uint8_t* halves, size_t r, uint16_t half) { std::memcpy(halves + 2 * r, &half, 2); }

}  // namespace moonlet
