// The two parts of a layer, each in one call: attention with its projections, and the mixture of experts with its
// router. They compute what LatentAttention (absorbed) and MoE in moonlet.model define, from the same primitives.

#pragma once

#include "attention.h"
#include "ffn.h"
#include "matrix.h"
#include "router.h"

namespace moonlet {

// What every part begins with, and to whose input its result is added: x + part(norm(x)).
struct Norm {
  const float* weight = nullptr;  // [D]
  float eps = 0;
};

struct AttentionLayer {
  Norm norm;
  bool has_latent_query = false;
  Matrix q_a;             // [rank, D], with has_latent_query
  const float* q_norm = nullptr;
  Matrix q;               // [heads * (nope + rope), D or rank]
  Matrix kv_a;            // [latent + rope, D]
  const float* kv_norm = nullptr;
  Matrix k_b, v_b;        // the first of `heads` matrices [latent, nope] and [value, latent]
  Matrix output;          // [D, heads * value]
  size_t heads = 0, rope = 0;
  float eps = 0, scale = 0;
};

// x, out: [tokens][D], not the same; cos, sin [tokens][rope / 2]. Appends the tokens' rows to the cache first.
void attention_layer(const Kernels& kernels, const AttentionLayer& layer, const float* x, const float* cos,
                     const float* sin, const Cache& cache, const int32_t* sequence, const int32_t* position,
                     size_t tokens, float* out);

// A dense network, or the shared expert alone.
void dense_layer(const Kernels& kernels, const Norm& norm, const Ffn& ffn, const float* x, size_t tokens, float* out);

struct MoeLayer {
  Norm norm;
  Matrix gate;  // [experts, D]
  const float* bias = nullptr;
  Router router;
};

void moe_layer(const Kernels& kernels, const MoeLayer& layer, const Experts& experts, const Ffn* shared, const float* x,
               size_t tokens, float* out);

// Norms the first `count` columns of rows that are `width` wide; the others are copied unless out is x.
void norm_rows(const Kernels& kernels, const float* x, size_t width, const float* weight, size_t count, float eps,
               size_t tokens, float* out);

}  // namespace moonlet
