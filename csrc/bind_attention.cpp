// Attention over the paged cache, rotary positions, the router and the sampler's search, as Python sees them.

#include <algorithm>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "attention.h"
#include "bind.h"
#include "pages.h"
#include "rotary.h"
#include "router.h"
#include "sampling.h"

namespace moonlet {
namespace {

void append(Pages pages, Array<int32_t, 2> table, Array<float, 2> latent, Ints sequence, Ints position,
            const Isa& isa) {
  const size_t tokens = latent.shape(0);
  const Cache cache = checked_cache(pages, table, latent.shape(1), sequence, position, tokens, false);
  const Kernels& kernels = chosen(isa);
  const nb::gil_scoped_release unlocked;
  append_latent(kernels, cache, latent.data(), sequence.data(), position.data(), tokens);
}

NewArray<float> attention(Array<float, 3> q, ReadPages pages, Array<int32_t, 2> table, Ints sequence, Ints position,
                          size_t values, float scale, const Isa& isa) {
  const size_t tokens = q.shape(0), heads = q.shape(1), columns = q.shape(2);
  const Cache cache = checked_cache(pages, table, columns, sequence, position, tokens, true);
  require(values > 0 && values <= columns, "values of " + str(values) + " columns in rows of " + str(columns));
  const Kernels& kernels = chosen(isa);
  auto out = new_array({tokens, heads, values});
  {
    const nb::gil_scoped_release unlocked;
    latent_attention(kernels, cache, q.data(), sequence.data(), position.data(), tokens, heads, values, scale,
                     out.data());
  }
  return out;
}

using Rows = nb::ndarray<float, nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void turn(Rows x, Array<float, 2> cos, Array<float, 2> sin, std::optional<Rows> given) {
  auto& out = given ? *given : x;
  const size_t tokens = x.shape(0), rows = x.shape(1), pairs = cos.shape(1);
  require(cos.shape(0) == tokens && sin.shape(0) == tokens && sin.shape(1) == pairs,
          "cos and sin are " + str(cos.shape(0)) + " x " + str(pairs) + " and " + str(sin.shape(0)) + " x " +
              str(sin.shape(1)) + ", wanted one row for each of " + str(tokens) + " tokens");
  require(out.shape(0) == tokens && out.shape(1) == rows,
          "the output has " + str(out.shape(0)) + " x " + str(out.shape(1)) + " rows, wanted " + str(tokens) + " x " +
              str(rows));
  require(x.shape(2) >= 2 * pairs && out.shape(2) >= 2 * pairs,
          "rows of " + str(std::min(x.shape(2), out.shape(2))) + " columns do not hold " + str(pairs) + " pairs");
  const nb::gil_scoped_release unlocked;
  rotate(x.data(), x.shape(2), cos.data(), sin.data(), tokens, rows, pairs, out.data(), out.shape(2));
}

std::pair<nb::ndarray<int32_t, nb::numpy, nb::c_contig>, NewArray<float>> choose(
    Array<float, 2> logits, std::optional<Array<float, 1>> bias, size_t top_k, bool sigmoid, bool normalize,
    float scaling, size_t groups, size_t top_groups, size_t group_best) {
  const size_t tokens = logits.shape(0), experts = logits.shape(1);
  require(!bias || bias->shape(0) == experts,
          "a bias for " + str(bias ? bias->shape(0) : 0) + " experts, wanted " + str(experts));
  const Router router{experts, top_k, groups, top_groups, group_best, sigmoid, normalize, scaling};
  check_router(router);
  auto* data = new int32_t[tokens * top_k + 1];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<int32_t*>(p); });
  nb::ndarray<int32_t, nb::numpy, nb::c_contig> ids(data, {tokens, top_k}, owner);
  auto weights = new_array({tokens, top_k});
  {
    const nb::gil_scoped_release unlocked;
    route(router, logits.data(), bias ? bias->data() : nullptr, tokens, data, weights.data());
  }
  return {ids, weights};
}

std::pair<double, int64_t> head(Array<float, 1> weights, double goal) {
  std::optional<Head> found;
  {
    const nb::gil_scoped_release unlocked;
    found = reach(weights.data(), weights.shape(0), goal);
  }
  require(found.has_value(), "the weights together do not reach the goal");
  return {found->mass, found->last};
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("append_latent", &append, nb::arg("pages").noconvert(), nb::arg("table").noconvert(),
        nb::arg("latent").noconvert(), nb::arg("sequence").noconvert(), nb::arg("position").noconvert(),
        nb::arg("isa") = nb::none());
  m.def("latent_attention", &attention, nb::arg("q").noconvert(), nb::arg("pages").noconvert(),
        nb::arg("table").noconvert(), nb::arg("sequence").noconvert(), nb::arg("position").noconvert(),
        nb::arg("values"), nb::arg("scale"), nb::arg("isa") = nb::none());
  m.def("code_row_bytes", [](size_t columns) { return Cache::row_bytes(columns, true); }, nb::arg("columns"));
  m.def("rotate", &turn, nb::arg("x").noconvert(), nb::arg("cos").noconvert(), nb::arg("sin").noconvert(),
        nb::arg("out").noconvert() = nb::none());
  m.def("route", &choose, nb::arg("logits").noconvert(), nb::arg("bias").noconvert().none(), nb::arg("top_k"),
        nb::arg("sigmoid"), nb::arg("normalize"), nb::arg("scaling"), nb::arg("groups") = 1, nb::arg("top_groups") = 1,
        nb::arg("group_best") = 2);
  m.def("reach", &head, nb::arg("weights").noconvert(), nb::arg("goal"));
}

}  // namespace moonlet
