// SwiGLU feed-forward networks: a dense one, the shared expert, and all routed experts of a layer in one call.

#pragma once

#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace moonlet {

struct Ffn {
  Matrix gate, up, down;  // [F, D], [F, D], [D, F]
};

// The experts of a layer: their matrices lie expert_bytes apart, `first` is expert 0.
struct Experts {
  Ffn first;
  size_t count = 0, expert_bytes = 0;
  Ffn at(size_t expert) const;
};

// out[t] = sum over k of weights[t][k] * expert ids[t][k] (x[t]), plus shared(x[t]) if there is one.
// experts nullptr: the shared network alone (top_k 0). x, out: [tokens][D] without gaps.
void ffn(const Kernels& kernels, const Experts* experts, const Ffn* shared, const float* x, size_t tokens,
         const int32_t* ids, const float* weights, size_t top_k, float* out);

}  // namespace moonlet
