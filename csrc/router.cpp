#include "router.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "threads.h"

namespace moonlet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void score(const float* logits, size_t count, bool sigmoid, float* scores) {
  if (sigmoid) {
    for (size_t e = 0; e < count; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float largest = *std::max_element(logits, logits + count);
  float sum = 0.0f;
  for (size_t e = 0; e < count; ++e) sum += scores[e] = std::exp(logits[e] - largest);
  for (size_t e = 0; e < count; ++e) scores[e] /= sum;
}

// The `count` best of `values` as indices, best first.
void best(const std::vector<float>& values, size_t count, int32_t* ids) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](int32_t a, int32_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
  std::copy_n(order.begin(), count, ids);
}

// Leaves only the experts of the best groups.
void keep_groups(const Router& router, std::vector<float>& choice) {
  const size_t size = router.experts / router.groups, counted = std::min(router.group_best, size);
  std::vector<float> group_scores(router.groups);
  for (size_t g = 0; g < router.groups; ++g) {
    std::vector<float> members(choice.begin() + static_cast<std::ptrdiff_t>(g * size),
                               choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::partial_sort(members.begin(), members.begin() + static_cast<std::ptrdiff_t>(counted), members.end(),
                      std::greater<>());
    group_scores[g] = std::accumulate(members.begin(), members.begin() + static_cast<std::ptrdiff_t>(counted), 0.0f);
  }
  std::vector<int32_t> order(router.groups);
  best(group_scores, router.groups, order.data());
  for (size_t k = router.top_groups; k < router.groups; ++k) {
    std::fill_n(choice.begin() + static_cast<std::ptrdiff_t>(order[k] * size), size, -kInfinity);
  }
}

void route_one(const Router& router, const float* logits, const float* bias, int32_t* ids, float* weights) {
  std::vector<float> scores(router.experts), choice(router.experts);
  score(logits, router.experts, router.sigmoid, scores.data());
  for (size_t e = 0; e < router.experts; ++e) {
    choice[e] = bias ? scores[e] + bias[e] : scores[e];
    if (std::isnan(choice[e])) choice[e] = kInfinity;
  }
  if (router.groups > 1) keep_groups(router, choice);
  best(choice, router.top_k, ids);
  float sum = 0.0f;
  for (size_t k = 0; k < router.top_k; ++k) sum += weights[k] = scores[ids[k]];
  const float factor = router.normalize ? sum + 1e-20f : 1.0f;
  for (size_t k = 0; k < router.top_k; ++k) weights[k] = weights[k] / factor * router.scaling;
}

}  // namespace

void route(const Router& router, const float* logits, const float* bias, size_t tokens, int32_t* ids, float* weights) {
  const auto one = [&](size_t t) {
    route_one(router, logits + t * router.experts, bias, ids + t * router.top_k, weights + t * router.top_k);
  };
  if (tokens * router.experts < 2048) {
    for (size_t t = 0; t < tokens; ++t) one(t);
  } else {
    parallel_for(tokens, one);
  }
}

}  // namespace moonlet
