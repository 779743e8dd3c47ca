// The head of a sorted vocabulary, found without sorting it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace moonlet {

struct Head {
  double mass;
  int64_t last;  // its last token
};

// The smallest head of the tokens sorted by weight, ties by number, whose mass reaches `goal`; nothing where all
// together do not. Weights are whole numbers whose sum is exact in a double, so that its order does not matter.
std::optional<Head> reach(const float* weights, size_t count, double goal);

}  // namespace moonlet
