#include "matrix.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace moonlet {
namespace {

constexpr size_t kChunkBytes = 128 << 10;  // of weights in one task: they stay in the L2 cache for all tiles
constexpr size_t kMaxChunkRows = 512;

size_t chunk_panels(const Matrix& matrix) {
  return std::clamp<size_t>(kChunkBytes / std::max<size_t>(matrix.panel_bytes(), 1), 1, kMaxChunkRows / kPanelRows);
}

}  // namespace

uint8_t* Scratch::get(size_t slot, size_t bytes) {
  if (slots_.size() <= slot) slots_.resize(slot + 1);
  auto& memory = slots_[slot];
  if (memory.size() < bytes + 64) memory = std::vector<uint8_t>(bytes + bytes / 4 + 64);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - address % 64) % 64;
}

Scratch& scratch() {
  thread_local Scratch mine;
  return mine;
}

Tiles::Tiles(size_t tokens, size_t limit)
    : count((tokens + limit - 1) / limit),
      base(count ? tokens / count : 0),
      longer(count ? tokens % count : 0) {}

size_t padded_groups(size_t columns) { return (columns + 255) / 256 * 8; }

Activations::Activations(const Kernels& kernels, const float* x, size_t x_stride, size_t tokens, size_t columns,
                         bool quantized, size_t slot)
    : groups(padded_groups(columns)), tiles(tokens, kernels.max_tokens), x_(x), x_stride_(x_stride) {
  if (!quantized) return;
  bytes_ = scratch().get(slot, groups * kTokenGroupBytes * tokens);
  const auto one = [&](size_t i) {
    const size_t n = tiles.size(i);
    for (size_t t = 0; t < n; ++t) {
      kernels.quantize(x + (tiles.first(i) + t) * x_stride, columns, groups, bytes_ + groups * kTokenGroupBytes * tiles.first(i), n, t);
    }
  };
  if (tokens * columns < 32768) {
    for (size_t i = 0; i < tiles.count; ++i) one(i);
  } else {
    parallel_for(tiles.count, one);
  }
}

void multiply_tile(const Kernels& kernels, const Matrix& matrix, size_t begin, size_t end, const uint8_t* tile,
                   size_t n, float* out, size_t out_stride) {
  // The last panel of a matrix whose rows are no multiple of 16 is computed aside: `out` has no room for it.
  const size_t whole = std::min(end, matrix.rows / kPanelRows);
  const auto gemm = kernels.gemm[matrix.format];
  if (whole > begin) {
    gemm(matrix.data + begin * matrix.panel_bytes(), whole - begin, matrix.panel_bytes(), matrix.shape.blocks, tile, n,
         out, out_stride);
  }
  if (whole < end) {
    float rest[16 * kPanelRows];
    gemm(matrix.data + whole * matrix.panel_bytes(), 1, matrix.panel_bytes(), matrix.shape.blocks, tile, n, rest,
         kPanelRows);
    for (size_t t = 0; t < n; ++t) {
      std::memcpy(out + t * out_stride + (whole - begin) * kPanelRows, rest + t * kPanelRows,
                  matrix.rows % kPanelRows * sizeof(float));
    }
  }
}

namespace {

// The same for float matrices, whose activations are the floats themselves.
void multiply_floats(const Kernels& kernels, const Matrix& matrix, size_t begin, size_t end, const float* x,
                     size_t x_stride, size_t n, float* out, size_t out_stride) {
  const size_t whole = std::min(end, matrix.rows / kPanelRows);
  const auto gemm = kernels.float_gemm[matrix.format];
  const size_t columns = matrix.columns;
  if (whole > begin) {
    gemm(matrix.data + begin * matrix.panel_bytes(), whole - begin, matrix.panel_bytes(), columns, x, x_stride, n, out,
         out_stride);
  }
  if (whole < end) {
    float rest[16 * kPanelRows];
    gemm(matrix.data + whole * matrix.panel_bytes(), 1, matrix.panel_bytes(), columns, x, x_stride, n, rest, kPanelRows);
    for (size_t t = 0; t < n; ++t) {
      std::memcpy(out + t * out_stride + (whole - begin) * kPanelRows, rest + t * kPanelRows,
                  matrix.rows % kPanelRows * sizeof(float));
    }
  }
}

}  // namespace

void Activations::multiply(const Kernels& kernels, const Matrix& matrix, size_t begin, size_t end, size_t i, float* out,
                           size_t out_stride) const {
  if (matrix.is_float) {
    multiply_floats(kernels, matrix, begin, end, x_ + tiles.first(i) * x_stride_, x_stride_, tiles.size(i), out,
                    out_stride);
  } else {
    multiply_tile(kernels, matrix, begin, end, tile(i), tiles.size(i), out, out_stride);
  }
}

void linear(const Kernels& kernels, const Matrix& matrix, const float* x, size_t x_stride, size_t tokens, float* out,
            size_t out_stride) {
  linear_stack(kernels, matrix, 1, x, x_stride, 0, tokens, out, out_stride, 0);
}

void linear_stack(const Kernels& kernels, const Matrix& first, size_t count, const float* x, size_t x_stride,
                  size_t x_step, size_t tokens, float* out, size_t out_stride, size_t out_step) {
  if (tokens == 0) return;
  std::vector<Activations> inputs;
  inputs.reserve(count);
  for (size_t h = 0; h < count; ++h) {
    inputs.emplace_back(kernels, x + h * x_step, x_stride, tokens, first.columns, !first.is_float, h);
  }
  const size_t step = chunk_panels(first), chunks = (first.panels() + step - 1) / step;
  parallel_for(count * chunks, [&](size_t task) {
    const size_t h = task / chunks, begin = task % chunks * step, end = std::min(begin + step, first.panels());
    Matrix matrix = first;
    matrix.data += h * first.bytes();
    for (size_t i = 0; i < inputs[h].tiles.count; ++i) {
      float* target = out + inputs[h].tiles.first(i) * out_stride + h * out_step + begin * kPanelRows;
      inputs[h].multiply(kernels, matrix, begin, end, i, target, out_stride);
    }
  });
}

}  // namespace moonlet
