#include "ffn.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"

namespace moonlet {
namespace {

// Tasks of the first half compute 32 gate and 32 up rows at a time: one group of what the second half reads.
constexpr size_t kGatePanels = kGroup / kPanelRows;
constexpr size_t kGroupsAtOnce = 8;
constexpr size_t kMaxTile = 16;
constexpr size_t kManyTokens = 64;  // from here on arithmetic takes the time, not reading
constexpr size_t kManyBytes = 256 << 10;  // of one network's down matrix in a task, which then stays in the L2 cache
constexpr size_t kMaxDownPanels = 16;

struct Pair {  // a token that an expert works on
  size_t token;
  float weight;
};

// A tile of pairs of one network: its activations before and after SwiGLU.
struct Tile {
  const Pair* pairs;
  size_t size;
  const uint8_t* x;
  uint8_t* hidden;
};

struct Job {  // one network and the tiles it works on
  Ffn ffn;
  size_t first_tile, tiles;
};

struct GateTask {
  const Job* job;
  Range groups;
};

struct Plan {
  std::vector<Pair> pairs;
  std::vector<Tile> tiles;
  std::vector<Job> jobs;
};

// Groups the (token, choice) pairs by expert, in the order of tokens; the shared network comes last.
void sort_by_expert(const Experts* experts, const Ffn* shared, size_t tokens, const int32_t* ids, const float* weights,
                    size_t top_k, size_t limit, Plan& plan) {
  plan.pairs.resize(tokens * top_k + (shared ? tokens : 0));
  std::vector<size_t> ends(experts ? experts->count + 1 : 1, 0);
  for (size_t i = 0; i < tokens * top_k; ++i) ++ends[static_cast<size_t>(ids[i]) + 1];
  for (size_t e = 1; e < ends.size(); ++e) ends[e] += ends[e - 1];
  std::vector<size_t> next(ends.begin(), ends.end());
  for (size_t i = 0; i < tokens * top_k; ++i) plan.pairs[next[static_cast<size_t>(ids[i])]++] = {i / top_k, weights[i]};
  const auto add_job = [&](const Ffn& ffn, size_t begin, size_t end) {
    const Tiles split(end - begin, limit);
    plan.jobs.push_back({ffn, plan.tiles.size(), split.count});
    for (size_t i = 0; i < split.count; ++i) {
      plan.tiles.push_back({plan.pairs.data() + begin + split.first(i), split.size(i), nullptr, nullptr});
    }
  };
  for (size_t e = 0; e + 1 < ends.size(); ++e) {
    if (ends[e + 1] > ends[e]) add_job(experts->at(e), ends[e], ends[e + 1]);
  }
  if (shared) {
    const size_t begin = tokens * top_k;
    for (size_t t = 0; t < tokens; ++t) plan.pairs[begin + t] = {t, 1.0f};
    add_job(*shared, begin, begin + tokens);
  }
}

// Moves a token from a tile of its own to place t of a tile of n.
void copy_token(const uint8_t* single, size_t groups, uint8_t* tile, size_t n, size_t t) {
  for (size_t g = 0; g < groups; ++g, single += kTokenGroupBytes, tile += kTokenGroupBytes * n) {
    std::memcpy(tile + 32 * t, single, 32);
    for (size_t i = 0; i < 5; ++i) std::memcpy(tile + (32 + 4 * i) * n + 4 * t, single + 32 + 4 * i, 4);
  }
}

// Quantizes every token once and lays the tiles out; a tile of one token needs no copy.
void fill_tiles(const Kernels& kernels, const float* x, size_t tokens, size_t columns, Plan& plan) {
  const size_t groups = padded_groups(columns), token_bytes = groups * kTokenGroupBytes;
  uint8_t* singles = scratch().get(0, tokens * token_bytes);
  const auto quantize = [&](size_t t) {
    kernels.quantize(x + t * columns, columns, groups, singles + t * token_bytes, 1, 0);
  };
  if (tokens == 1) quantize(0); else parallel_for(tokens, quantize);
  uint8_t* copies = scratch().get(1, plan.pairs.size() * token_bytes);
  for (Tile& tile : plan.tiles) {
    tile.x = tile.size == 1 ? singles + tile.pairs->token * token_bytes : copies;
    copies += tile.size == 1 ? 0 : tile.size * token_bytes;
  }
  const auto copy = [&](size_t i) {
    const Tile& tile = plan.tiles[i];
    for (size_t t = 0; t < tile.size && tile.size > 1; ++t) {
      copy_token(singles + tile.pairs[t].token * token_bytes, groups, const_cast<uint8_t*>(tile.x), tile.size, t);
    }
  };
  if (plan.tiles.size() < plan.pairs.size()) parallel_for(plan.tiles.size(), copy);
}

size_t hidden_groups(const Ffn& ffn) { return padded_groups(ffn.gate.rows); }

void place_hidden(Plan& plan) {
  size_t bytes = 0;
  for (const Job& job : plan.jobs) {
    for (size_t i = 0; i < job.tiles; ++i) {
      bytes += plan.tiles[job.first_tile + i].size * hidden_groups(job.ffn) * kTokenGroupBytes;
    }
  }
  uint8_t* hidden = scratch().get(2, bytes);
  for (const Job& job : plan.jobs) {
    for (size_t i = 0; i < job.tiles; ++i) {
      Tile& tile = plan.tiles[job.first_tile + i];
      tile.hidden = hidden;
      hidden += tile.size * hidden_groups(job.ffn) * kTokenGroupBytes;
    }
  }
}

// Hidden groups [begin, end) = quantized silu(gate x) * (up x), for all tiles of a job; at most kGroupsAtOnce.
void gate_up(const Kernels& kernels, const Job& job, const Plan& plan, Range groups) {
  const Matrix &gate = job.ffn.gate, &up = job.ffn.up;
  const size_t begin = groups.begin * kGatePanels, end = std::min(groups.end * kGatePanels, gate.panels());
  const size_t width = (groups.end - groups.begin) * kGroup;
  for (size_t i = 0; i < job.tiles; ++i) {
    const Tile& tile = plan.tiles[job.first_tile + i];
    float a[kMaxTile * kGroup * kGroupsAtOnce], b[kMaxTile * kGroup * kGroupsAtOnce];
    if (begin < end) {
      multiply_tile(kernels, gate, begin, end, tile.x, tile.size, a, width);
      multiply_tile(kernels, up, begin, end, tile.x, tile.size, b, width);
    }
    for (size_t g = groups.begin; g < groups.end; ++g) {
      const size_t rows = g * kGroup < gate.rows ? std::min(gate.rows - g * kGroup, kGroup) : 0;
      for (size_t t = 0; t < tile.size; ++t) {
        const size_t at = t * width + (g - groups.begin) * kGroup;
        kernels.swiglu(a + at, b + at, a + at, rows);
        kernels.quantize(a + at, rows, 1, tile.hidden + g * kTokenGroupBytes * tile.size, tile.size, t);
      }
    }
  }
}

// The network's weighted output for `range` of panels is added to `out`.
void add_down(const Kernels& kernels, const Job& job, const Tile& tile, Range range, size_t rows, float* out) {
  float y[kMaxTile * kMaxDownPanels * kPanelRows];
  for (size_t begin = range.begin; begin < range.end; begin += kMaxDownPanels) {
    const size_t end = std::min(begin + kMaxDownPanels, range.end), stride = (end - begin) * kPanelRows;
    const size_t first = begin * kPanelRows, count = std::min(end * kPanelRows, rows) - first;
    multiply_tile(kernels, job.ffn.down, begin, end, tile.hidden, tile.size, y, stride);
    for (size_t t = 0; t < tile.size; ++t) {
      float* target = out + tile.pairs[t].token * rows + first;
      for (size_t r = 0; r < count; ++r) target[r] += tile.pairs[t].weight * y[t * stride + r];
    }
  }
}

// Rows of a range of panels of every network's output, weighted and summed in the order of the jobs.
void down(const Kernels& kernels, const Plan& plan, Range range, size_t tokens, size_t rows, float* out) {
  const size_t first = range.begin * kPanelRows, count = std::min(range.end * kPanelRows, rows) - first;
  for (size_t t = 0; t < tokens; ++t) std::memset(out + t * rows + first, 0, count * sizeof(float));
  for (const Job& job : plan.jobs) {
    for (size_t i = 0; i < job.tiles; ++i) {
      add_down(kernels, job, plan.tiles[job.first_tile + i], range, rows, out);
    }
  }
}

std::vector<Range> equal_ranges(size_t count, size_t step) {
  std::vector<Range> ranges;
  for (size_t begin = 0; begin < count; begin += step) ranges.push_back({begin, std::min(begin + step, count)});
  return ranges;
}

}  // namespace

Ffn Experts::at(size_t expert) const {
  Ffn ffn = first;
  for (Matrix* matrix : {&ffn.gate, &ffn.up, &ffn.down}) matrix->data += expert * expert_bytes;
  return ffn;
}

void ffn(const Kernels& kernels, const Experts* experts, const Ffn* shared, const float* x, size_t tokens,
         const int32_t* ids, const float* weights, size_t top_k, float* out) {
  if (tokens == 0) return;
  const Matrix& any_down = shared ? shared->down : experts->first.down;
  const size_t columns = (shared ? shared->gate : experts->first.gate).columns;
  Plan plan;
  sort_by_expert(experts, shared, tokens, ids, weights, top_k, kernels.max_tokens, plan);
  fill_tiles(kernels, x, tokens, columns, plan);
  place_hidden(plan);
  // Few tokens read long streams of gate and of up in turn; with many, a task's weights stay in the L2 cache.
  const bool few = tokens < kManyTokens;
  size_t left = 0;
  for (const Job& job : plan.jobs) left += hidden_groups(job.ffn);
  const size_t last = left / 4;  // in short tasks, so that the threads end together
  std::vector<GateTask> tasks;
  for (const Job& job : plan.jobs) {
    const size_t groups = hidden_groups(job.ffn);
    for (size_t g = 0; g < groups;) {
      const size_t step = std::min(groups - g, !few ? 1 : left > last ? kGroupsAtOnce : 2);
      tasks.push_back({&job, {g, g + step}});
      g += step;
      left -= step;
    }
  }
  parallel_for(tasks.size(), [&](size_t i) { gate_up(kernels, *tasks[i].job, plan, tasks[i].groups); });
  const size_t panel_bytes = std::max<size_t>(any_down.panel_bytes(), 1);
  const size_t step = std::clamp<size_t>(kManyBytes / panel_bytes, 1, kMaxDownPanels);
  const auto rows = few ? shrinking_ranges(any_down.panels(), 2) : equal_ranges(any_down.panels(), step);
  parallel_for(rows.size(), [&](size_t i) { down(kernels, plan, rows[i], tokens, any_down.rows, out); });
}

}  // namespace moonlet
