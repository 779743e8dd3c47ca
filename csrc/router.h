// The router of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) and, with softmax scores, of DeepSeek-V2.

#pragma once

#include <cstddef>
#include <cstdint>

namespace moonlet {

struct Router {
  size_t experts, top_k, groups, top_groups;
  size_t group_best;  // a group is as good as the sum of this many of its experts
  bool sigmoid, normalize;
  float scaling;
};

// ids and weights [tokens][top_k] for logits [tokens][experts], best first; equal scores go to the lower index, NaN is
// best of all, so that it shows. bias [experts] or nullptr steers the choice only.
void route(const Router& router, const float* logits, const float* bias, size_t tokens, int32_t* ids, float* weights);

}  // namespace moonlet
