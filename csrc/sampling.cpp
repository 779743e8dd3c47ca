#include "sampling.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace moonlet {
namespace {

constexpr size_t kBins = 2048, kCopies = 4;
constexpr size_t kSorted = 256;  // so few tokens are faster sorted than told apart by another digit

// Positive floats are in the order of their bits: eleven of these, then ten, then ten tell any two apart.
struct Digit {
  int shift;
  uint32_t mask;
  size_t of(float weight) const { return std::bit_cast<uint32_t>(weight) >> shift & mask; }
};
constexpr Digit kFirst{20, 0x7ff}, kOthers[] = {{10, 0x3ff}, {0, 0x3ff}};

// What the tokens of each bin weigh together. Neighbours add to different copies, so that none waits for the other.
struct Masses {
  double of[kCopies][kBins] = {};
  size_t top = 0;
  void add(size_t i, size_t bin, float weight) {
    of[i % kCopies][bin] += weight;
    top = std::max(top, bin);
  }
  // Adds whole bins to `before`, the heaviest first, while they leave `goal` unreached; returns the one that reaches it.
  std::optional<size_t> reach(double goal, double& before) const {
    for (size_t bin = top + 1; bin-- > 0;) {
      const double mass = of[0][bin] + of[1][bin] + of[2][bin] + of[3][bin];
      if (before + mass >= goal) return bin;
      before += mass;
    }
    return std::nullopt;
  }
};

}  // namespace

std::optional<Head> reach(const float* weights, size_t count, double goal) {
  double before = 0.0;  // the mass of the tokens that sort before those in question
  Masses masses;
  for (size_t i = 0; i < count; ++i) masses.add(i, kFirst.of(weights[i]), weights[i]);
  std::optional<size_t> bin = masses.reach(goal, before);
  if (!bin) return std::nullopt;
  std::vector<int64_t> left;  // the tokens in question, in order
  for (size_t i = 0; i < count; ++i) {
    if (kFirst.of(weights[i]) == *bin) left.push_back(static_cast<int64_t>(i));
  }
  for (const Digit& digit : kOthers) {
    if (left.size() <= kSorted) break;
    masses = {};
    for (size_t k = 0; k < left.size(); ++k) masses.add(k, digit.of(weights[left[k]]), weights[left[k]]);
    bin = masses.reach(goal, before);
    if (!bin) return std::nullopt;
    std::erase_if(left, [&](int64_t i) { return digit.of(weights[i]) != *bin; });
  }
  if (left.size() <= kSorted) {  // if not, they all weigh the same
    std::stable_sort(left.begin(), left.end(), [&](int64_t a, int64_t b) { return weights[a] > weights[b]; });
  }
  for (int64_t i : left) {
    before += weights[i];
    if (before >= goal) return Head{before, i};
  }
  return std::nullopt;
}

}  // namespace moonlet
