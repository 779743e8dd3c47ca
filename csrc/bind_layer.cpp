// The parts of a layer, as Python sees them: made once, called with the activations alone.

#include <utility>
#include <variant>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "layer.h"
#include "packed.h"
#include "pages.h"

namespace moonlet {
namespace {

using Shared = std::shared_ptr<PackedMatrix>;
using Vector = Array<float, 1>;

void check_hidden(const Array<float, 2>& x, size_t hidden) {
  require(x.shape(1) == hidden, "the activations have " + str(x.shape(1)) + " columns, wanted " + str(hidden));
}

Norm checked_norm(const Vector& norm, float eps, size_t hidden) {
  require(norm.shape(0) == hidden, "a norm of " + str(norm.shape(0)) + " columns, wanted " + str(hidden));
  return {norm.data(), eps};
}

class PackedAttention {
 public:
  PackedAttention(Vector norm, float norm_eps, std::optional<Shared> q_a, std::optional<Vector> q_norm, Shared q, Shared kv_a, Vector kv_norm,
                  Shared k_b, Shared v_b, Shared output, size_t rope, float eps, float scale)
      : held_{q_a.value_or(nullptr), q, kv_a, k_b, v_b, output}, norm_(norm), kv_norm_(kv_norm), q_norm_(q_norm) {
    const size_t heads = k_b->count, latent = k_b->matrix.rows, hidden = kv_a->matrix.columns;
    const size_t rank = q_a ? (*q_a)->matrix.rows : hidden;
    require(q_a.has_value() == q_norm.has_value() && (!q_a || (*q_a)->matrix.columns == hidden) &&
                (!q_norm || q_norm->shape(0) == rank),
            "the latent query wants a matrix of " + str(hidden) + " columns and a norm of its rows");
    require(rope % 2 == 0 && q->matrix.columns == rank && q->matrix.rows == heads * (k_b->matrix.columns + rope),
            "the query matrix is " + str(q->matrix.rows) + " x " + str(q->matrix.columns) + ", wanted " +
                str(heads * (k_b->matrix.columns + rope)) + " x " + str(rank));
    require(kv_a->matrix.rows == latent + rope && kv_norm.shape(0) == latent && v_b->count == heads &&
                v_b->matrix.columns == latent,
            "kv_a, its norm, k_b and v_b do not fit a latent of " + str(latent));
    require(output->matrix.rows == hidden && output->matrix.columns == heads * v_b->matrix.rows,
            "the output matrix is " + str(output->matrix.rows) + " x " + str(output->matrix.columns) + ", wanted " +
                str(hidden) + " x " + str(heads * v_b->matrix.rows));
    layer_ = {checked_norm(norm, norm_eps, hidden),
              q_a.has_value(), q_a ? (*q_a)->matrix : Matrix{}, q_norm ? q_norm->data() : nullptr,
              q->matrix,       kv_a->matrix,                    kv_norm.data(),
              k_b->matrix,     v_b->matrix,                     output->matrix,
              heads,           rope,                            eps,
              scale};
  }

  NewArray<float> run(Array<float, 2> x, Array<float, 2> cos, Array<float, 2> sin, Pages pages,
                      Array<int32_t, 2> table, Ints sequence, Ints position, const Isa& isa) const {
    const size_t tokens = x.shape(0);
    check_hidden(x, layer_.kv_a.columns);
    check_angles(cos, sin, tokens);
    const Cache cache = checked_cache(pages, table, columns(), sequence, position, tokens, true);
    auto out = new_array({tokens, layer_.kv_a.columns});
    const Kernels& kernels = chosen(isa);
    {
      const nb::gil_scoped_release unlocked;
      attention_layer(kernels, layer_, x.data(), cos.data(), sin.data(), cache, sequence.data(), position.data(),
                      tokens, out.data());
    }
    return out;
  }

  void check_angles(const Array<float, 2>& cos, const Array<float, 2>& sin, size_t tokens) const {
    const size_t pairs = layer_.rope / 2;
    require(cos.shape(0) == tokens && sin.shape(0) == tokens && cos.shape(1) == pairs && sin.shape(1) == pairs,
            "cos and sin want " + str(tokens) + " x " + str(pairs) + " angles");
  }
  size_t hidden() const { return layer_.kv_a.columns; }
  size_t columns() const { return layer_.kv_a.rows; }  // of a row of the cache
  const AttentionLayer& layer() const { return layer_; }

 private:
  Shared held_[6];
  Vector norm_, kv_norm_;
  std::optional<Vector> q_norm_;
  AttentionLayer layer_;
};

class PackedDense {
 public:
  PackedDense(Vector norm, float eps, std::shared_ptr<PackedFfn> ffn)
      : norm_(norm), ffn_(ffn), layer_(checked_norm(norm, eps, ffn->ffn().gate.columns)) {}

  size_t hidden() const { return ffn_->ffn().gate.columns; }
  void compute(const Kernels& kernels, const float* x, size_t tokens, float* out) const {
    dense_layer(kernels, layer_, ffn_->ffn(), x, tokens, out);
  }

 private:
  Vector norm_;
  std::shared_ptr<PackedFfn> ffn_;
  Norm layer_;
};

class PackedMoe {
 public:
  PackedMoe(Vector norm, float eps, Shared gate, std::optional<Vector> bias, std::shared_ptr<PackedExperts> experts,
            std::optional<std::shared_ptr<PackedFfn>> shared, size_t top_k, bool sigmoid, bool normalize, float scaling,
            size_t groups, size_t top_groups, size_t group_best)
      : norm_(norm), gate_(gate), bias_(bias), experts_(experts), shared_(shared.value_or(nullptr)) {
    const size_t count = experts->experts().count, hidden = experts->experts().first.gate.columns;
    require(gate->matrix.rows == count && gate->matrix.columns == hidden && (!bias || bias->shape(0) == count),
            "the router is " + str(gate->matrix.rows) + " x " + str(gate->matrix.columns) + ", wanted " + str(count) +
                " x " + str(hidden) + " and as many biases");
    require(!shared_ || shared_->ffn().gate.columns == hidden, "the shared expert has other columns than the experts");
    const Router router{count, top_k, groups, top_groups, group_best, sigmoid, normalize, scaling};
    check_router(router);
    layer_ = {checked_norm(norm, eps, hidden), gate->matrix, bias ? bias->data() : nullptr, router};
  }

  size_t hidden() const { return layer_.gate.columns; }
  void compute(const Kernels& kernels, const float* x, size_t tokens, float* out) const {
    const Ffn shared = shared_ ? shared_->ffn() : Ffn{};
    moe_layer(kernels, layer_, experts_->experts(), shared_ ? &shared : nullptr, x, tokens, out);
  }

 private:
  Vector norm_;
  Shared gate_;
  std::optional<Vector> bias_;
  std::shared_ptr<PackedExperts> experts_;
  std::shared_ptr<PackedFfn> shared_;
  MoeLayer layer_;
};

template <class Part>
NewArray<float> run_part(const Part& part, Array<float, 2> x, const Isa& isa) {
  const size_t tokens = x.shape(0);
  check_hidden(x, part.hidden());
  auto out = new_array({tokens, part.hidden()});
  const Kernels& kernels = chosen(isa);
  {
    const nb::gil_scoped_release unlocked;
    part.compute(kernels, x.data(), tokens, out.data());
  }
  return out;
}

// Layers one after the other: what Python does between two calls takes as long as reading a small matrix.
class PackedLayers {
 public:
  using Mlp = std::variant<std::shared_ptr<PackedDense>, std::shared_ptr<PackedMoe>>;
  using Layer = std::pair<std::shared_ptr<PackedAttention>, Mlp>;

  explicit PackedLayers(std::vector<Layer> layers) : layers_(std::move(layers)) {
    require(!layers_.empty(), "no layers");
    const PackedAttention& first = *layers_.front().first;
    for (const auto& [attention, mlp] : layers_) {
      const size_t hidden = std::visit([](const auto& part) { return part->hidden(); }, mlp);
      require(attention->hidden() == first.hidden() && hidden == first.hidden() &&
                  attention->columns() == first.columns() && attention->layer().rope == first.layer().rope,
              "layers of different sizes");
    }
  }

  NewArray<float> run(Array<float, 2> x, Array<float, 2> cos, Array<float, 2> sin, AllPages pages,
                      Array<int32_t, 2> table, Ints sequence, Ints position, const Isa& isa) const {
    const PackedAttention& first = *layers_.front().first;
    const size_t tokens = x.shape(0), hidden = first.hidden();
    check_hidden(x, hidden);
    first.check_angles(cos, sin, tokens);
    require(pages.shape(0) == layers_.size(),
            "pages for " + str(pages.shape(0)) + " layers, wanted " + str(layers_.size()));
    Cache cache = checked_cache(pages, table, first.columns(), sequence, position, tokens, true);
    const size_t layer_bytes = pages.shape(1) * pages.shape(2) * cache.row_bytes();
    auto out = new_array({tokens, hidden});
    const Kernels& kernels = chosen(isa);
    {
      const nb::gil_scoped_release unlocked;
      std::vector<float> between(tokens * hidden);
      const float* inner = x.data();
      for (const auto& [attention, mlp] : layers_) {
        attention_layer(kernels, attention->layer(), inner, cos.data(), sin.data(), cache, sequence.data(),
                        position.data(), tokens, between.data());
        std::visit([&](const auto& part) { part->compute(kernels, between.data(), tokens, out.data()); }, mlp);
        inner = out.data();
        cache.pages += layer_bytes;
      }
    }
    return out;
  }

 private:
  std::vector<Layer> layers_;
};

}  // namespace

void bind_layer(nb::module_& m) {
  nb::class_<PackedAttention>(m, "Attention")
      .def(nb::init<Vector, float, std::optional<Shared>, std::optional<Vector>, Shared, Shared, Vector, Shared, Shared,
                    Shared, size_t, float, float>(),
           nb::arg("norm").noconvert(), nb::arg("norm_eps"), nb::arg("q_a").none(), nb::arg("q_norm").noconvert().none(), nb::arg("q"), nb::arg("kv_a"),
           nb::arg("kv_norm").noconvert(), nb::arg("k_b"), nb::arg("v_b"), nb::arg("output"), nb::arg("rope"),
           nb::arg("eps"), nb::arg("scale"))
      .def("__call__", &PackedAttention::run, nb::arg("x").noconvert(), nb::arg("cos").noconvert(),
           nb::arg("sin").noconvert(), nb::arg("pages").noconvert(), nb::arg("table").noconvert(),
           nb::arg("sequence").noconvert(), nb::arg("position").noconvert(), nb::arg("isa") = nb::none());
  nb::class_<PackedDense>(m, "Dense")
      .def(nb::init<Vector, float, std::shared_ptr<PackedFfn>>(), nb::arg("norm").noconvert(), nb::arg("eps"),
           nb::arg("ffn"))
      .def("__call__", &run_part<PackedDense>, nb::arg("x").noconvert(), nb::arg("isa") = nb::none());
  nb::class_<PackedMoe>(m, "Moe")
      .def(nb::init<Vector, float, Shared, std::optional<Vector>, std::shared_ptr<PackedExperts>,
                    std::optional<std::shared_ptr<PackedFfn>>, size_t, bool, bool, float, size_t, size_t, size_t>(),
           nb::arg("norm").noconvert(), nb::arg("eps"), nb::arg("gate"), nb::arg("bias").noconvert().none(),
           nb::arg("experts"), nb::arg("shared").none(),
           nb::arg("top_k"), nb::arg("sigmoid"), nb::arg("normalize"), nb::arg("scaling"), nb::arg("groups") = 1,
           nb::arg("top_groups") = 1, nb::arg("group_best") = 2)
      .def("__call__", &run_part<PackedMoe>, nb::arg("x").noconvert(), nb::arg("isa") = nb::none());
  nb::class_<PackedLayers>(m, "Layers")
      .def(nb::init<std::vector<PackedLayers::Layer>>(), nb::arg("layers"))
      .def("__call__", &PackedLayers::run, nb::arg("x").noconvert(), nb::arg("cos").noconvert(),
           nb::arg("sin").noconvert(), nb::arg("pages").noconvert(), nb::arg("table").noconvert(),
           nb::arg("sequence").noconvert(), nb::arg("position").noconvert(), nb::arg("isa") = nb::none());
}

}  // namespace moonlet
