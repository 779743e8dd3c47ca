// Stored rows -> panels (kernels.h): the same bits in another order, so that a vector meets 16 rows at once.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace moonlet {

// What rows are stored as in files: the block types of GGUF, compressed-tensors' INT4, and plain floats.
enum class Stored : uint8_t { kF32, kF16, kBF16, kQ4_0, kInt4, kQ8_0, kQ4_K, kCount };

struct StoredInfo {
  const char* name;
  size_t values, bytes;  // of a block; of INT4 the codes only, its scales come apart
  bool is_float;
  uint8_t format;  // a Format or FloatFormat
};

const StoredInfo& info(Stored type);
const Stored* find_stored(const char* name);  // nullptr: no kernel for it

struct PanelShape {
  size_t blocks, block_bytes, block_columns;
  size_t bytes() const { return blocks * block_bytes; }
};
PanelShape panel_shape(bool is_float, uint8_t format, size_t columns);

// Up to 16 stored rows -> one panel. Rows and columns that are not there become zeros.
// rows: the first of them, row_bytes apart; scales: of INT4, [rows][ceil(columns / 32)] bfloat16.
void pack_panel(Stored type, const uint8_t* rows, size_t row_bytes, const uint16_t* scales, size_t row_count,
                size_t columns, uint8_t* panel);
// Up to 16 rows of float32, float16 or bfloat16 -> a Q8_0 panel: scale = absmax / 127.
void quantize_panel(Stored type, const uint8_t* rows, size_t row_bytes, size_t row_count, size_t columns,
                    uint8_t* panel);

}  // namespace moonlet
