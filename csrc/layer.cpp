#include "layer.h"

#include <algorithm>

#include "rotary.h"
#include "threads.h"

namespace moonlet {
namespace {

// What stands between two steps of a part; apart from scratch(), which the steps use inside.
Scratch& between() {
  thread_local Scratch mine;
  return mine;
}

constexpr size_t kSerial = 65536;  // numbers, below which waking the threads costs more

const float* normed(const Kernels& kernels, const Norm& norm, const float* x, size_t columns, size_t tokens) {
  float* out = between().floats(7, tokens * columns);
  norm_rows(kernels, x, columns, norm.weight, columns, norm.eps, tokens, out);
  return out;
}

void add_rows(const float* x, size_t columns, size_t tokens, float* out) {
  const auto one = [&](size_t t) {
    for (size_t i = t * columns; i < (t + 1) * columns; ++i) out[i] += x[i];
  };
  if (tokens * columns < kSerial) {
    for (size_t t = 0; t < tokens; ++t) one(t);
  } else {
    parallel_for(tokens, one);
  }
}

}  // namespace

void norm_rows(const Kernels& kernels, const float* x, size_t width, const float* weight, size_t count, float eps,
               size_t tokens, float* out) {
  const auto one = [&](size_t t) {
    const float* row = x + t * width;
    kernels.rms_norm(row, weight, eps, out + t * width, count);
    if (out != x) std::copy(row + count, row + width, out + t * width + count);
  };
  if (tokens * count < kSerial) {
    for (size_t t = 0; t < tokens; ++t) one(t);
  } else {
    parallel_for(tokens, one);
  }
}

void attention_layer(const Kernels& kernels, const AttentionLayer& layer, const float* x, const float* cos,
                     const float* sin, const Cache& cache, const int32_t* sequence, const int32_t* position,
                     size_t tokens, float* out) {
  if (tokens == 0) return;
  const size_t latent = layer.k_b.rows, rope = layer.rope, row = latent + rope, heads = layer.heads;
  const size_t nope = layer.k_b.columns, value = layer.v_b.rows, columns = layer.kv_a.columns;
  const size_t rank = layer.has_latent_query ? layer.q_a.rows : 0, q_width = nope + rope;
  float* q_a = between().floats(0, tokens * rank);
  float* q = between().floats(1, tokens * heads * q_width);
  float* rows = between().floats(2, tokens * row);
  float* queries = between().floats(3, tokens * heads * row);
  float* mixed = between().floats(4, tokens * heads * latent);
  float* values = between().floats(5, tokens * heads * value);

  const float* const inner = normed(kernels, layer.norm, x, columns, tokens);
  const Activations input(kernels, inner, columns, tokens, columns, between().get(6, activation_bytes(tokens, columns)));
  const Product first[] = {{layer.kv_a, &input, rows, row},
                           layer.has_latent_query ? Product{layer.q_a, &input, q_a, rank}
                                                  : Product{layer.q, &input, q, heads * q_width}};
  if (!layer.kv_a.is_float || !first[1].matrix.is_float) quantize_all(kernels, {input});
  multiply_all(kernels, first, 2);

  norm_rows(kernels, rows, row, layer.kv_norm, latent, layer.eps, tokens, rows);
  rotate(rows, row, cos, sin, tokens, 1, rope / 2, rows, row);
  append_latent(kernels, cache, rows, sequence, position, tokens);

  if (layer.has_latent_query) {
    norm_rows(kernels, q_a, rank, layer.q_norm, rank, layer.eps, tokens, q_a);
    linear(kernels, layer.q, q_a, rank, tokens, q, heads * q_width);
  }
  linear_stack(kernels, layer.k_b, heads, q, heads * q_width, q_width, tokens, queries, heads * row, row);
  rotate(q, q_width, cos, sin, tokens, heads, rope / 2, queries, row);

  latent_attention(kernels, cache, queries, sequence, position, tokens, heads, latent, layer.scale, mixed);
  linear_stack(kernels, layer.v_b, heads, mixed, heads * latent, latent, tokens, values, heads * value, value);
  linear(kernels, layer.output, values, heads * value, tokens, out, layer.output.rows);
  add_rows(x, columns, tokens, out);
}

void dense_layer(const Kernels& kernels, const Norm& norm, const Ffn& network, const float* x, size_t tokens,
                 float* out) {
  const size_t columns = network.gate.columns;
  ffn(kernels, nullptr, &network, normed(kernels, norm, x, columns, tokens), tokens, nullptr, nullptr, 0, out);
  add_rows(x, columns, tokens, out);
}

void moe_layer(const Kernels& kernels, const MoeLayer& layer, const Experts& experts, const Ffn* shared, const float* x,
               size_t tokens, float* out) {
  const size_t top_k = layer.router.top_k;
  float* logits = between().floats(0, tokens * layer.gate.rows);
  float* weights = between().floats(1, tokens * top_k);
  auto* ids = reinterpret_cast<int32_t*>(between().get(2, tokens * top_k * sizeof(int32_t)));
  const size_t columns = layer.gate.columns;
  const float* inner = normed(kernels, layer.norm, x, columns, tokens);
  linear(kernels, layer.gate, inner, columns, tokens, logits, layer.gate.rows);
  route(layer.router, logits, layer.bias, tokens, ids, weights);
  ffn(kernels, &experts, shared, inner, tokens, ids, weights, top_k, out);
  add_rows(x, columns, tokens, out);
}

}  // namespace moonlet
