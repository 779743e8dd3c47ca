// What the files of bindings share. Bindings check and hold memory; kernels trust them.

#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "kernels.h"

namespace moonlet {

namespace nb = nanobind;

template <class T, int dims>
using Array = nb::ndarray<const T, nb::numpy, nb::ndim<dims>, nb::c_contig, nb::device::cpu>;
template <class T>
using NewArray = nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu>;

inline void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

inline std::string str(size_t number) { return std::to_string(number); }

using Isa = std::optional<std::string>;

inline const Kernels& chosen(const Isa& isa) {
  if (!isa) return kernels();
  const Kernels* table = find_kernels(isa->c_str());
  require(table != nullptr, "this CPU does not run " + *isa + " kernels");
  return *table;
}

// A new array of float32 that numpy owns.
inline NewArray<float> new_array(std::initializer_list<size_t> shape) {
  size_t count = 1;
  for (size_t n : shape) count *= n;
  auto* data = new float[count ? count : 1];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return NewArray<float>(data, shape.size(), shape.begin(), owner);
}

void bind_weights(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_layer(nb::module_& m);
void bind_limits(nb::module_& m);

}  // namespace moonlet
