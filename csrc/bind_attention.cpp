// Attention over the paged cache, rotary positions and the router, as Python sees them.

#include <algorithm>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "attention.h"
#include "bind.h"
#include "rotary.h"
#include "router.h"

namespace moonlet {
namespace {

// uint16 [pages, page_size, columns] holds bfloat16, uint8 [pages, page_size, row_bytes] codes and scales.
using Pages = nb::ndarray<nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using ReadPages = nb::ndarray<nb::ro, nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Ints = Array<int32_t, 1>;

// The cache behind the arrays, with every place that the tokens touch checked: those at `sequence` and `position`
// and, with `whole`, all before.
template <class AnyPages>
Cache checked_cache(const AnyPages& pages, const Array<int32_t, 2>& table, size_t columns, const Ints& sequence,
                    const Ints& position, size_t tokens, bool whole) {
  const bool eight_bits = pages.dtype() == nb::dtype<uint8_t>();
  require(eight_bits || pages.dtype() == nb::dtype<uint16_t>(), "pages are uint16 (bfloat16) or uint8 (8-bit rows)");
  const size_t count = pages.shape(0), page_size = pages.shape(1);
  const size_t wanted = eight_bits ? Cache::row_bytes(columns, true) : columns;
  require(columns > 0 && page_size > 0, "a cache without columns or with empty pages");
  require(pages.shape(2) == wanted, "rows of pages have " + str(pages.shape(2)) + " elements, wanted " + str(wanted) +
                                        " for " + str(columns) + " columns");
  require(sequence.shape(0) == tokens && position.shape(0) == tokens,
          "sequence and position have " + str(sequence.shape(0)) + " and " + str(position.shape(0)) +
              " elements, wanted " + str(tokens));
  const size_t sequences = table.shape(0), max_pages = table.shape(1);
  for (size_t t = 0; t < tokens; ++t) {
    const int32_t s = sequence.data()[t], p = position.data()[t];
    require(s >= 0 && static_cast<size_t>(s) < sequences,
            "sequence " + std::to_string(s) + " of a table of " + str(sequences));
    require(p >= 0 && static_cast<size_t>(p) / page_size < max_pages,
            "position " + std::to_string(p) + " of a table of " + str(max_pages) + " pages of " + str(page_size));
    const size_t last = static_cast<size_t>(p) / page_size;
    const bool seen = t > 0 && whole && s == sequence.data()[t - 1] && p >= position.data()[t - 1];
    for (size_t i = seen ? static_cast<size_t>(position.data()[t - 1]) / page_size : whole ? 0 : last; i <= last; ++i) {
      const int32_t page = table.data()[static_cast<size_t>(s) * max_pages + i];
      require(page >= 0 && static_cast<size_t>(page) < count,
              "page " + std::to_string(page) + " of " + str(count) + ", at place " + str(i) + " of sequence " +
                  std::to_string(s));
    }
  }
  auto* data = static_cast<uint8_t*>(const_cast<void*>(static_cast<const void*>(pages.data())));
  return {data, page_size, columns, eight_bits, table.data(), max_pages};
}

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
  require(top_k > 0 && top_k <= experts, str(top_k) + " of " + str(experts) + " experts cannot be chosen");
  require(groups > 0 && experts % groups == 0, str(experts) + " experts do not form " + str(groups) + " groups");
  require(top_groups > 0 && top_groups <= groups, str(top_groups) + " of " + str(groups) + " groups cannot be chosen");
  require(group_best > 0, "a group is judged by at least one expert");
  const Router router{experts, top_k, groups, top_groups, group_best, sigmoid, normalize, scaling};
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
}

}  // namespace moonlet
