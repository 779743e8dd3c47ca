// Stored rows -> panels (kernels.h): the same bits in another order, so that a vector meets 16 rows at once.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace moonlet {

// A kind of panel: what a matrix in memory is made of.
struct PanelKind {
  const char* name;
  bool is_float;
  uint8_t format;         // a Format or FloatFormat
  size_t columns, bytes;  // of a block of 16 rows
};

// 16 stored rows, or 16 columns of scales of INT4.
struct Rows {
  const uint8_t* data;
  size_t stride;
  const uint16_t* scales;  // [16][scale_stride] bfloat16, of INT4 only
  size_t scale_stride;
  const uint8_t* at(size_t row, size_t offset) const { return data + row * stride + offset; }
};

// A kind of rows in files: the block types of GGUF, compressed-tensors' INT4, and plain floats.
struct StoredKind {
  const char* name;
  size_t values, bytes;  // of a block; of INT4 the codes only, its scales come apart
  const char* panel;     // the kind of panel that keeps all of it
  void (*pack)(const Rows& rows, size_t columns, uint8_t* panel);
  const char* grid;  // the code book that it needs or nullptr
};

const PanelKind* find_panel(const char* name);    // nullptr: there is none
const StoredKind* find_stored(const char* name);  // nullptr: there is none

const PanelKind& panel_kind(bool is_float, uint8_t format);

struct PanelShape {
  size_t blocks, block_bytes;
  size_t bytes() const { return (blocks * block_bytes + 63) / 64 * 64; }  // panels begin cache lines
};
PanelShape panel_shape(const PanelKind& kind, size_t columns);

// Bytes of a stored row; 0 if the columns are no whole number of blocks.
size_t row_bytes(const StoredKind& kind, size_t columns);
bool can_pack(const StoredKind& from, const PanelKind& to);  // as it is, or floats -> Q8_0

// The code books of IQ types stand in Python's moonlet.quant.grids, and are handed over once: rows of `width` values.
bool has_grid(const char* name);
bool set_grid(const char* name, const float* values, size_t rows, size_t width);  // false: not that code book

// Up to 16 stored rows -> one panel. Rows and columns that are not there become zeros.
// rows: the first of them, row_bytes apart; scales: of INT4, [rows][ceil(columns / 32)] bfloat16.
void pack_panel(const StoredKind& from, const PanelKind& to, const uint8_t* rows, const uint16_t* scales,
                size_t row_count, size_t columns, uint8_t* panel);

}  // namespace moonlet
