// The cache's arrays as Python passes them, checked before a kernel touches them.

#pragma once

#include "attention.h"
#include "bind.h"
#include "router.h"

namespace moonlet {

// uint16 [pages, page_size, columns] holds bfloat16, uint8 [pages, page_size, row_bytes] codes and scales.
using Pages = nb::ndarray<nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using AllPages = nb::ndarray<nb::numpy, nb::ndim<4>, nb::c_contig, nb::device::cpu>;  // of layers
using ReadPages = nb::ndarray<nb::ro, nb::numpy, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Ints = Array<int32_t, 1>;

// The cache behind the arrays, with every place that the tokens touch checked: those at `sequence` and `position`
// and, with `whole`, all before. Of pages of several layers, the cache of the first.
template <class AnyPages>
Cache checked_cache(const AnyPages& pages, const Array<int32_t, 2>& table, size_t columns, const Ints& sequence,
                    const Ints& position, size_t tokens, bool whole) {
  const bool eight_bits = pages.dtype() == nb::dtype<uint8_t>();
  require(eight_bits || pages.dtype() == nb::dtype<uint16_t>(), "pages are uint16 (bfloat16) or uint8 (8-bit rows)");
  const size_t at = pages.ndim() - 3, count = pages.shape(at), page_size = pages.shape(at + 1);
  const size_t wanted = eight_bits ? Cache::row_bytes(columns, true) : columns;
  require(columns > 0 && page_size > 0, "a cache without columns or with empty pages");
  require(pages.shape(at + 2) == wanted, "rows of pages have " + str(pages.shape(at + 2)) + " elements, wanted " + str(wanted) +
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

inline void check_router(const Router& r) {
  require(r.top_k > 0 && r.top_k <= r.experts, str(r.top_k) + " of " + str(r.experts) + " experts cannot be chosen");
  require(r.groups > 0 && r.experts % r.groups == 0,
          str(r.experts) + " experts do not form " + str(r.groups) + " groups");
  require(r.top_groups > 0 && r.top_groups <= r.groups,
          str(r.top_groups) + " of " + str(r.groups) + " groups cannot be chosen");
  require(r.group_best > 0, "a group is judged by at least one expert");
}

}  // namespace moonlet
