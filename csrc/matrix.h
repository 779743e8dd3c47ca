// Packed weights, and the products of activations with them on all threads.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "pack.h"

namespace moonlet {

struct Matrix {
  bool is_float = false;
  uint8_t format = 0;
  size_t rows = 0, columns = 0;
  PanelShape shape{};
  const uint8_t* data = nullptr;

  size_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  size_t panel_bytes() const { return shape.bytes(); }
  size_t bytes() const { return panels() * panel_bytes(); }
};

// Memory that grows and is kept: activations of one call, reused by the next call of the same thread.
class Scratch {
 public:
  // Room for `bytes`, aligned to 64; valid until the next call for the same slot.
  uint8_t* get(size_t slot, size_t bytes);
  float* floats(size_t slot, size_t count) { return reinterpret_cast<float*>(get(slot, count * sizeof(float))); }

 private:
  std::vector<std::vector<uint8_t>> slots_;
};
Scratch& scratch();  // of the calling thread

// How `tokens` are cut into tiles of nearly equal size, none above the kernels' limit.
struct Tiles {
  size_t count, base, longer;  // `longer` tiles hold base + 1 tokens, the others base
  Tiles(size_t tokens, size_t limit);
  size_t size(size_t tile) const { return base + (tile < longer); }
  size_t first(size_t tile) const { return tile * base + (tile < longer ? tile : longer); }
};

size_t padded_groups(size_t columns);
inline size_t activation_bytes(size_t tokens, size_t columns) {
  return tokens * padded_groups(columns) * kTokenGroupBytes;
}

struct Range {
  size_t begin, end;
};
// Cuts [0, count) into ranges that shrink towards the end, none but the last below `smallest`: long ones, because
// memory is read fastest in long streams, and short ones, so that all threads end together.
std::vector<Range> shrinking_ranges(size_t count, size_t smallest);

// Activations in the form that a matrix's kernels read: int8 tiles in `memory` (activation_bytes), once they are
// quantized, or the floats themselves for float matrices.
class Activations {
 public:
  // x: [tokens][columns], rows x_stride floats apart. Groups are padded to the longest block, so that one set of
  // activations serves matrices of any format with these columns.
  Activations(const Kernels& kernels, const float* x, size_t x_stride, size_t tokens, size_t columns, uint8_t* memory);
  void quantize(const Kernels& kernels, size_t tile) const;
  const uint8_t* tile(size_t i) const { return bytes_ + groups * kTokenGroupBytes * tiles.first(i); }
  size_t bytes() const { return groups * kTokenGroupBytes * tiles.first(tiles.count); }
  // The matrix's panels [begin, end) times tile i; out points at the tile's first token and row 16 * begin.
  void multiply(const Kernels& kernels, const Matrix& matrix, size_t begin, size_t end, size_t i, float* out,
                size_t out_stride) const;

  size_t groups;
  Tiles tiles;

 private:
  const float* x_;
  size_t x_stride_, columns_;
  uint8_t* bytes_;
};

void quantize_all(const Kernels& kernels, const std::vector<Activations>& inputs);

// out[t] = matrix x[t]
struct Product {
  Matrix matrix;
  const Activations* x;
  float* out;
  size_t out_stride;
};
// All of them in one go over the threads.
void multiply_all(const Kernels& kernels, const Product* products, size_t count);

// Panels [begin, end) of `matrix` times one tile of `n` tokens.
void multiply_tile(const Kernels& kernels, const Matrix& matrix, size_t begin, size_t end, const uint8_t* tile,
                   size_t n, float* out, size_t out_stride);

// out[t] = matrix x[t]; rows of x and out are their strides (in floats) apart; out needs no padding.
void linear(const Kernels& kernels, const Matrix& matrix, const float* x, size_t x_stride, size_t tokens, float* out,
            size_t out_stride);

// out[t][h] = matrix_h x[t][h] for `count` matrices of the same shape and format that follow each other in memory.
void linear_stack(const Kernels& kernels, const Matrix& first, size_t count, const float* x, size_t x_stride,
                  size_t x_step, size_t tokens, float* out, size_t out_stride, size_t out_step);

}  // namespace moonlet
