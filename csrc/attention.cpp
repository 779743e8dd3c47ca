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

constexpr size_t kMaxChunks = 32;
constexpr float kLog2E = 1.44269504f;

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Positions that are summed up on their own before they are merged with those before: what threads share the work
// by. It depends on the token's position alone, so that its result does too.
size_t chunk_length(size_t position) {
  size_t chunk = 4 * kBlock;
  while (position / chunk >= kMaxChunks) chunk *= 2;
  return chunk;
}

// Some heads of tokens that follow each other in the call and in a sequence: they share the rearranged blocks.
struct Group {
  size_t token, tokens, head, heads, last, chunk;  // last: the largest position
  size_t rows() const { return tokens * heads; }
  size_t chunks() const { return last / chunk + 1; }
};

// Of the rows of a group: weighted sum of values [rows][columns], largest score, sum of weights.
struct State {
  float *out, *max, *total;
  size_t columns;
  static size_t floats(size_t rows, size_t columns) { return rows * (columns + 2); }
  State(float* memory, size_t rows, size_t columns)
      : out(memory), max(memory + rows * columns), total(max + rows), columns(columns) {}
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
  const uint16_t* bfloat_row(const uint8_t* row, uint16_t* room) const;
  void round_queries(const Group& group, uint32_t* queries) const;
  void run_chunk(const Group& group, const uint32_t* queries, size_t chunk, size_t following, State state) const;
  void merge(const Group& group, size_t chunk, State state, State other) const;
  void finish(const Group& group, State state) const;
  size_t state_floats(const Group& group) const { return State::floats(group.rows(), tiles * kBlock); }
  State state(const Group& group, float* memory) const { return State(memory, group.rows(), tiles * kBlock); }
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

// The row as it is where it may be read over its whole width, else a copy in `room` with zeros behind its columns.
const uint16_t* Call::bfloat_row(const uint8_t* row, uint16_t* room) const {
  const size_t columns = cache.columns;
  if (!cache.eight_bits && columns == width) return reinterpret_cast<const uint16_t*>(row);
  if (cache.eight_bits) {
    kernels.attention.bfloat_of_codes(row, columns, room);
  } else {
    std::memcpy(room, row, 2 * columns);
  }
  std::fill(room + columns, room + width, 0);
  return room;
}

// The queries of a group in bfloat16 [rows][pairs], zero behind their columns.
void Call::round_queries(const Group& group, uint32_t* queries) const {
  for (size_t row = 0; row < group.rows(); ++row) {
    const size_t t = group.token + row / group.heads, head = group.head + row % group.heads, columns = cache.columns;
    auto* to = reinterpret_cast<uint16_t*>(queries + row * pairs);
    kernels.attention.to_bfloat(q + (t * heads + head) * columns, to, columns);
    std::fill(to + columns, to + 2 * pairs, 0);
  }
}

// Chunk `following` is the one that this thread will probably take next: its first rows are fetched meanwhile.
void Call::run_chunk(const Group& group, const uint32_t* queries, size_t chunk, size_t following, State state) const {
  const size_t begin = chunk * group.chunk, end = std::min(begin + group.chunk, group.last + 1);
  const size_t key_bytes = 4 * pairs * kBlock, value_bytes = 2 * tiles * kBlock * kBlock;
  uint8_t* memory = scratch().get(2, key_bytes + value_bytes + 2 * width * (kBlock + 1));
  auto* keys = reinterpret_cast<uint32_t*>(memory);
  auto* value_pairs = reinterpret_cast<uint32_t*>(memory + key_bytes);
  auto* room = reinterpret_cast<uint16_t*>(memory + key_bytes + value_bytes);
  uint16_t* zeros = room + kBlock * width;  // stands for positions that nobody has written yet
  std::fill_n(zeros, width, 0);

  const int32_t of = sequence[group.token];
  const uint8_t* stored[kBlock];
  const auto find_rows = [&](size_t first) {
    for (size_t i = 0; i < kBlock; ++i) stored[i] = cache.row(of, std::min(first + i, group.last));
  };
  find_rows(begin);
  for (const uint8_t* row : stored) {
    for (size_t byte = 0; byte < cache.row_bytes(); byte += 64) __builtin_prefetch(row + byte, 0, 2);
  }
  for (size_t first = begin; first < end; first += kBlock) {
    const uint16_t* block[kBlock];
    for (size_t i = 0; i < kBlock; ++i) {
      block[i] = first + i < end ? bfloat_row(stored[i], room + i * width) : zeros;
    }
    kernels.attention.rearrange(block, pairs, tiles, keys, value_pairs);
    const size_t coming = first + kBlock < end ? first + kBlock : following * group.chunk;
    const uint8_t* const* next = coming <= group.last ? stored : nullptr;
    if (next) find_rows(coming);
    for (size_t t = 0; t < group.tokens; ++t) {
      const size_t at = position[group.token + t], row = t * group.heads;
      if (at < first) continue;
      kernels.attention.attend(keys, value_pairs, pairs, tiles, std::min(at + 1 - first, kBlock), first == begin, scale,
                               queries + row * pairs, group.heads, state.out + row * state.columns, state.max + row,
                               state.total + row, next, cache.row_bytes());
      next = nullptr;
    }
  }
}

// Adds a later chunk, for the tokens that see any of it.
void Call::merge(const Group& group, size_t chunk, State state, State other) const {
  for (size_t t = 0; t < group.tokens; ++t) {
    const size_t row = t * group.heads, offset = row * state.columns;
    if (static_cast<size_t>(position[group.token + t]) < chunk * group.chunk) continue;
    kernels.attention.merge(state.out + offset, state.max + row, state.total + row, other.out + offset, other.max + row,
                            other.total + row, group.heads, state.columns);
  }
}

void Call::finish(const Group& group, State state) const {
  for (size_t row = 0; row < group.rows(); ++row) {
    const size_t t = group.token + row / group.heads, head = group.head + row % group.heads;
    kernels.attention.divide(state.out + row * state.columns, state.total[row], out + (t * heads + head) * values,
                             values);
  }
}

// All chunks of a group one after the other.
void run_group(const Call& call, const Group& group) {
  const size_t floats = call.state_floats(group);
  float* memory = scratch().floats(1, 2 * floats + call.pairs * group.rows());
  const State state = call.state(group, memory), part = call.state(group, memory + floats);
  auto* queries = reinterpret_cast<uint32_t*>(memory + 2 * floats);
  call.round_queries(group, queries);
  call.run_chunk(group, queries, 0, 1, state);
  for (size_t chunk = 1; chunk < group.chunks(); ++chunk) {
    call.run_chunk(group, queries, chunk, chunk + 1, part);
    call.merge(group, chunk, state, part);
  }
  call.finish(group, state);
}

// All chunks of all groups side by side: the same sums in the same order.
void run_split(const Call& call, const std::vector<Group>& groups) {
  std::vector<std::pair<const Group*, size_t>> tasks;
  std::vector<size_t> offsets{0};  // of the states of a task
  std::vector<size_t> firsts;      // first task of a group
  for (const Group& group : groups) {
    firsts.push_back(tasks.size());
    for (size_t chunk = 0; chunk < group.chunks(); ++chunk) {
      tasks.emplace_back(&group, chunk);
      offsets.push_back(offsets.back() + call.state_floats(group));
    }
  }
  float* memory = scratch().floats(0, offsets.back());
  const size_t threads = num_threads();
  parallel_for(tasks.size(), [&](size_t i) {
    const auto [group, chunk] = tasks[i];
    auto* queries = reinterpret_cast<uint32_t*>(scratch().get(1, 4 * call.pairs * group->rows()));
    call.round_queries(*group, queries);
    call.run_chunk(*group, queries, chunk, chunk + threads, call.state(*group, memory + offsets[i]));
  });
  parallel_for(groups.size(), [&](size_t g) {
    const Group& group = groups[g];
    const State state = call.state(group, memory + offsets[firsts[g]]);
    for (size_t chunk = 1; chunk < group.chunks(); ++chunk) {
      call.merge(group, chunk, state, call.state(group, memory + offsets[firsts[g] + chunk]));
    }
    call.finish(group, state);
  });
}

}  // namespace

void latent_attention(const Kernels& kernels, const Cache& cache, const float* q, const int32_t* sequence,
                      const int32_t* position, size_t tokens, size_t heads, size_t values, float scale, float* out) {
  if (tokens == 0 || heads == 0) return;
  const size_t pairs = round_up(cache.columns, 32) / 2, tiles = round_up(values, kBlock) / kBlock;
  const Call call{kernels, cache,  q,     sequence, position, tokens, heads, values, scale * kLog2E,
                  out,     pairs,  tiles, std::max(2 * pairs, tiles * kBlock)};
  const auto tasks = [](const std::vector<Group>& groups) {
    size_t count = 0;
    for (const Group& group : groups) count += group.chunks();
    return count;
  };
  // Groups are large, for rearranging a block costs as much as several queries, unless threads would lack work.
  const size_t wanted = 4 * num_threads(), parts = (heads + kMaxRows - 1) / kMaxRows;
  size_t heads_each = (heads + parts - 1) / parts;
  std::vector<Group> groups = call.groups(heads_each);
  while (tasks(groups) < wanted && heads_each > 16) groups = call.groups(heads_each = (heads_each + 1) / 2);
  if (groups.size() < wanted) return run_split(call, groups);
  parallel_for(groups.size(), [&](size_t i) { run_group(call, groups[i]); });
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
