#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "matrix.h"
#include "threads.h"

namespace moonlet {
namespace {

constexpr size_t kMaxChunks = 64;

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Positions that are summed up on their own before they are merged with those before: what threads share the work
// by. It depends on the token's position alone, so that its result does too.
size_t chunk_length(size_t position) {
  size_t chunk = 2 * kBlock;
  while (position / chunk >= kMaxChunks) chunk *= 2;
  return chunk;
}

// Some heads of tokens that follow each other in the call and in a sequence: they share the rearranged blocks.
struct Group {
  size_t token, tokens, head, heads, last, chunk;  // last: the largest position
  size_t rows() const { return tokens * heads; }
  size_t chunks() const { return last / chunk + 1; }
};

struct Call {
  const Kernels& kernels;
  const Cache& cache;
  const float* q;
  const int32_t *sequence, *position;
  size_t tokens, heads, values;
  float scale;
  float* out;

  size_t pairs, tiles, width;  // width: columns that rearranging reads of a row

  std::vector<Group> groups(size_t heads_each) const;
  void run_chunk(const Group& group, size_t chunk, float* state) const;
  const uint16_t* bfloat_row(int32_t of, size_t at, uint16_t* room) const;
  void finish(const Group& group, const float* state) const;

  // A state is out [rows][64 tiles], max [rows], sum [rows].
  size_t state_floats(size_t rows) const { return rows * (tiles * kBlock + 2); }
  float* max_of(float* state, size_t rows) const { return state + rows * tiles * kBlock; }
  void clear(float* state, size_t rows) const {
    std::fill_n(state, rows * tiles * kBlock, 0.0f);
    std::fill_n(max_of(state, rows), rows, -std::numeric_limits<float>::infinity());
    std::fill_n(max_of(state, rows) + rows, rows, 0.0f);
  }
  void merge(const Group& group, float* state, float* other) const {
    const size_t rows = group.rows();
    float *max = max_of(state, rows), *other_max = max_of(other, rows);
    kernels.attention.merge(state, max, max + rows, other, other_max, other_max + rows, rows, tiles * kBlock);
  }
};

std::vector<Group> Call::groups(size_t heads_each) const {
  std::vector<Group> found;
  const size_t limit = std::max<size_t>(kMaxRows / heads_each, 1);
  for (size_t t = 0, end; t < tokens; t = end) {
    const size_t chunk = chunk_length(position[t]);
    size_t last = position[t];
    for (end = t + 1; end < tokens && end - t < limit && sequence[end] == sequence[t] &&
                      chunk_length(position[end]) == chunk;
         ++end) {
      last = std::max<size_t>(last, position[end]);
    }
    for (size_t head = 0; head < heads; head += heads_each) {
      found.push_back({t, end - t, head, std::min(heads_each, heads - head), last, chunk});
    }
  }
  return found;
}

// The row as it is where it may be read over its whole width, else a copy in `room`, which is zero behind the columns.
const uint16_t* Call::bfloat_row(int32_t of, size_t at, uint16_t* room) const {
  const uint8_t* row = cache.row(of, at);
  const size_t columns = cache.columns;
  if (cache.eight_bits) {
    float scales[64];
    for (size_t begin = 0; begin < columns; begin += 64 * kCodeGroup) {
      const size_t count = std::min(columns - begin, 64 * kCodeGroup), groups = (count + kCodeGroup - 1) / kCodeGroup;
      std::memcpy(scales, row + columns + begin / kCodeGroup * 4, groups * 4);
      kernels.attention.bfloat_of_codes(reinterpret_cast<const int8_t*>(row) + begin, scales, room + begin, count);
    }
    return room;
  }
  if (columns == width && reinterpret_cast<uintptr_t>(row) % 2 == 0) return reinterpret_cast<const uint16_t*>(row);
  std::memcpy(room, row, 2 * columns);
  return room;
}

void Call::run_chunk(const Group& group, size_t chunk, float* state) const {
  const size_t rows = group.rows();
  // Zeroed, for what lies behind the columns; the last row stays zero for positions behind the last.
  const size_t room_bytes = 2 * width * (kBlock + 1), query_bytes = 4 * pairs * rows;
  const size_t key_bytes = 4 * pairs * kBlock, value_bytes = 2 * tiles * kBlock * kBlock;
  uint8_t* memory = scratch().get(2, key_bytes + value_bytes + query_bytes + room_bytes);
  auto* keys = reinterpret_cast<uint32_t*>(memory);
  auto* values_of = reinterpret_cast<uint32_t*>(memory + key_bytes);
  auto* queries = reinterpret_cast<uint32_t*>(memory + key_bytes + value_bytes);
  auto* room = reinterpret_cast<uint16_t*>(memory + key_bytes + value_bytes + query_bytes);
  std::memset(queries, 0, query_bytes + room_bytes);

  const size_t columns = cache.columns;
  for (size_t t = 0; t < group.tokens; ++t) {
    for (size_t h = 0; h < group.heads; ++h) {
      const float* from = q + ((group.token + t) * heads + group.head + h) * columns;
      kernels.attention.to_bfloat(from, reinterpret_cast<uint16_t*>(queries + (t * group.heads + h) * pairs), columns);
    }
  }
  clear(state, rows);
  float* max = max_of(state, rows);
  const size_t end = std::min((chunk + 1) * group.chunk, group.last + 1);
  for (size_t first = chunk * group.chunk; first < end; first += kBlock) {
    const uint16_t* block[kBlock];
    for (size_t i = 0; i < kBlock; ++i) {
      block[i] = first + i < end ? bfloat_row(sequence[group.token], first + i, room + i * width) : room + kBlock * width;
    }
    kernels.attention.rearrange(block, pairs, tiles, keys, values_of);
    for (size_t t = 0; t < group.tokens; ++t) {
      const size_t at = position[group.token + t], row = t * group.heads;
      if (at < first) continue;
      kernels.attention.attend(keys, values_of, pairs, tiles, std::min(at + 1 - first, kBlock), scale,
                               queries + row * pairs, group.heads, state + row * tiles * kBlock, max + row,
                               max + rows + row);
    }
  }
}

void Call::finish(const Group& group, const float* state) const {
  const float* sum = state + group.rows() * (tiles * kBlock + 1);
  for (size_t row = 0; row < group.rows(); ++row) {
    const size_t t = group.token + row / group.heads, h = group.head + row % group.heads;
    float* to = out + (t * heads + h) * values;
    const float inverse = 1.0f / sum[row];
    for (size_t k = 0; k < values; ++k) to[k] = state[row * tiles * kBlock + k] * inverse;
  }
}

}  // namespace

void latent_attention(const Kernels& kernels, const Cache& cache, const float* q, const int32_t* sequence,
                      const int32_t* position, size_t tokens, size_t heads, size_t values, float scale, float* out) {
  if (tokens == 0 || heads == 0) return;
  const size_t columns = cache.columns, pairs = round_up(columns, 32) / 2, tiles = (values + kBlock - 1) / kBlock;
  const Call call{kernels, cache, q, sequence, position, tokens, heads, values, scale, out,
                  pairs, tiles, std::max(2 * pairs, tiles * kBlock)};

  // Groups are large, as rearranging a block costs as much as a few queries, unless threads would be without work.
  const size_t wanted = 4 * num_threads();
  size_t heads_each = (heads + (heads + kMaxRows - 1) / kMaxRows - 1) / ((heads + kMaxRows - 1) / kMaxRows);
  const auto tasks = [](const std::vector<Group>& groups) {
    size_t count = 0;
    for (const Group& group : groups) count += group.chunks();
    return count;
  };
  std::vector<Group> groups = call.groups(heads_each);
  while (tasks(groups) < wanted && heads_each > 16) groups = call.groups(heads_each = (heads_each + 1) / 2);

  if (groups.size() >= wanted) {
    parallel_for(groups.size(), [&](size_t i) {
      const Group& group = groups[i];
      float* state = scratch().floats(1, 2 * call.state_floats(group.rows()));
      float* part = state + call.state_floats(group.rows());
      call.clear(state, group.rows());
      for (size_t chunk = 0; chunk < group.chunks(); ++chunk) {
        call.run_chunk(group, chunk, part);
        call.merge(group, state, part);
      }
      call.finish(group, state);
    });
    return;
  }
  struct Part {
    const Group* group;
    size_t chunk;
    float* state;
  };
  std::vector<Part> parts;
  size_t floats = 0;
  for (const Group& group : groups) floats += group.chunks() * call.state_floats(group.rows());
  float* states = scratch().floats(0, floats);
  for (const Group& group : groups) {
    for (size_t chunk = 0; chunk < group.chunks(); ++chunk, states += call.state_floats(group.rows())) {
      parts.push_back({&group, chunk, states});
    }
  }
  parallel_for(parts.size(), [&](size_t i) { call.run_chunk(*parts[i].group, parts[i].chunk, parts[i].state); });
  std::vector<size_t> firsts;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].chunk == 0) firsts.push_back(i);
  }
  parallel_for(firsts.size(), [&](size_t i) {
    const Part* part = &parts[firsts[i]];
    const Group& group = *part->group;
    float* state = scratch().floats(1, call.state_floats(group.rows()));
    call.clear(state, group.rows());
    for (size_t chunk = 0; chunk < group.chunks(); ++chunk) call.merge(group, state, part[chunk].state);
    call.finish(group, state);
  });
}

void append_latent(const Kernels& kernels, const Cache& cache, const float* latent, const int32_t* sequence,
                   const int32_t* position, size_t tokens) {
  const size_t columns = cache.columns;
  const auto one = [&](size_t t) {
    const float* x = latent + t * columns;
    uint8_t* row = cache.row(sequence[t], position[t]);
    if (!cache.eight_bits) return kernels.attention.to_bfloat(x, reinterpret_cast<uint16_t*>(row), columns);
    for (size_t begin = 0; begin < columns; begin += kCodeGroup) {
      const size_t end = std::min(begin + kCodeGroup, columns);
      float largest = 0.0f;
      bool finite = true;
      for (size_t k = begin; k < end; ++k) {
        largest = std::max(largest, std::fabs(x[k]));
        finite = finite && std::isfinite(x[k]);
      }
      // A group with a NaN or an infinity gets the scale NaN and codes that are not zero.
      const float step = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
      const float inverse = finite && step > 0.0f ? 127.0f / largest : 0.0f;
      for (size_t k = begin; k < end; ++k) {
        row[k] = static_cast<uint8_t>(finite ? static_cast<int8_t>(std::nearbyint(x[k] * inverse)) : 1);
      }
      std::memcpy(row + columns + begin / kCodeGroup * 4, &step, 4);
    }
  };
  if (tokens * columns < 65536) {
    for (size_t t = 0; t < tokens; ++t) one(t);
  } else {
    parallel_for(tokens, one);
  }
}

}  // namespace moonlet
