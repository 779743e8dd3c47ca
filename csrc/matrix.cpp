#include "matrix.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace moonlet {
namespace {

constexpr size_t kChunkBytes = 128 << 10;  // of weights in one task: they stay in the L2 cache for all tiles
constexpr size_t kStreamBytes = 512 << 10;  // a larger matrix that one tile meets is read in shrinking ranges
constexpr size_t kLastBytes = 32 << 10;     // of which the last are this small
constexpr size_t kSerialBytes = 16 << 10;  // of activations, below which waking the threads costs more
constexpr size_t kMaxChunkRows = 512;

size_t panels_in(size_t bytes, const Matrix& matrix) {
  return std::clamp<size_t>(bytes / std::max<size_t>(matrix.panel_bytes(), 1), 1, kMaxChunkRows / kPanelRows);
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

std::vector<Range> shrinking_ranges(size_t count, size_t smallest) {
  std::vector<Range> ranges;
  for (size_t begin = 0; begin < count;) {
    const size_t size = std::max({smallest, (count - begin) / (2 * num_threads()), size_t{1}});
    ranges.push_back({begin, std::min(begin + size, count)});
    begin = ranges.back().end;
  }
  return ranges;
}

size_t padded_groups(size_t columns) { return (columns + 255) / 256 * 8; }

Activations::Activations(const Kernels& kernels, const float* x, size_t x_stride, size_t tokens, size_t columns,
                         uint8_t* memory)
    : groups(padded_groups(columns)),
      tiles(tokens, kernels.max_tokens),
      x_(x),
      x_stride_(x_stride),
      columns_(columns),
      bytes_(memory) {}

void Activations::quantize(const Kernels& kernels, size_t i) const {
  const size_t n = tiles.size(i);
  uint8_t* tile = bytes_ + groups * kTokenGroupBytes * tiles.first(i);
  for (size_t t = 0; t < n; ++t) {
    kernels.quantize(x_ + (tiles.first(i) + t) * x_stride_, columns_, groups, tile, n, t);
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

void multiply_all(const Kernels& kernels, const Product* products, size_t count) {
  struct Chunk {
    const Product* product;
    Range panels;
  };
  std::vector<Chunk> chunks;
  for (const Product* product = products; product < products + count; ++product) {
    const Matrix& matrix = product->matrix;
    const size_t panels = matrix.panels(), step = panels_in(kChunkBytes, matrix);
    if (product->x->tiles.count == 1 && matrix.bytes() > kStreamBytes) {
      for (const Range range : shrinking_ranges(panels, panels_in(kLastBytes, matrix))) chunks.push_back({product, range});
    } else {
      for (size_t p = 0; p < panels; p += step) chunks.push_back({product, {p, std::min(p + step, panels)}});
    }
  }
  parallel_for(chunks.size(), [&](size_t i) {
    const auto& [product, panels] = chunks[i];
    const Activations& x = *product->x;
    for (size_t tile = 0; tile < x.tiles.count; ++tile) {
      float* out = product->out + x.tiles.first(tile) * product->out_stride + panels.begin * kPanelRows;
      x.multiply(kernels, product->matrix, panels.begin, panels.end, tile, out, product->out_stride);
    }
  });
}

void linear(const Kernels& kernels, const Matrix& matrix, const float* x, size_t x_stride, size_t tokens, float* out,
            size_t out_stride) {
  linear_stack(kernels, matrix, 1, x, x_stride, 0, tokens, out, out_stride, 0);
}

void linear_stack(const Kernels& kernels, const Matrix& first, size_t count, const float* x, size_t x_stride,
                  size_t x_step, size_t tokens, float* out, size_t out_stride, size_t out_step) {
  if (tokens == 0) return;
  const size_t bytes = activation_bytes(tokens, first.columns);
  uint8_t* memory = first.is_float ? nullptr : scratch().get(0, count * bytes);
  std::vector<Activations> inputs;
  std::vector<Product> products;
  inputs.reserve(count);
  for (size_t h = 0; h < count; ++h) {
    inputs.emplace_back(kernels, x + h * x_step, x_stride, tokens, first.columns, memory ? memory + h * bytes : nullptr);
    Matrix matrix = first;
    matrix.data += h * first.bytes();
    products.push_back({matrix, &inputs.back(), out + h * out_step, out_stride});
  }
  if (memory) quantize_all(kernels, inputs);
  multiply_all(kernels, products.data(), count);
}

void quantize_all(const Kernels& kernels, const std::vector<Activations>& inputs) {
  if (inputs.empty()) return;
  const size_t tiles = inputs.front().tiles.count, tasks = inputs.size() * tiles;
  const auto one = [&](size_t i) { inputs[i / tiles].quantize(kernels, i % tiles); };
  if (inputs.size() * inputs.front().bytes() < kSerialBytes) {
    for (size_t i = 0; i < tasks; ++i) one(i);
  } else {
    parallel_for(tasks, one);
  }
}

}  // namespace moonlet
