// The limits of this machine, as Python sees them.

#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "bind.h"
#include "peaks.h"

namespace moonlet {

void bind_limits(nb::module_& m) {
  nb::class_<ReadBuffer>(m, "ReadBuffer")
      .def(nb::init<size_t>(), nb::arg("bytes"), nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("nbytes", &ReadBuffer::bytes)
      .def("read", &ReadBuffer::read, nb::arg("all_threads"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "peak",
      [](const std::string& isa, const std::string& operation, bool all_threads) {
        require(operation == "int8_dot" || operation == "bf16_dot" || operation == "float_multiply_add",
                "no operation " + operation);
        const Operation what = operation == "int8_dot"   ? Operation::kInt8Dot
                               : operation == "bf16_dot" ? Operation::kBf16Dot
                                                         : Operation::kFloatMultiplyAdd;
        const nb::gil_scoped_release unlocked;
        return peak(isa, what, all_threads);
      },
      nb::arg("isa"), nb::arg("operation"), nb::arg("all_threads"));
}

}  // namespace moonlet
