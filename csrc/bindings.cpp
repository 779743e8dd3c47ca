// What Python sees of csrc: the module moonlet.kernels._kernels.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "cpu.h"

NB_MODULE(_kernels, m) {
  // A process may end while a model is still in use, by a daemon thread for instance: that is no leak to warn of.
  nanobind::set_leak_warnings(false);
  m.doc() = "The C++ half of moonlet.kernels.";
  m.def("supported_isas", &moonlet::supported_isas, "Instruction sets that this CPU can run, narrowest first.");
  m.def("isa", [] { return moonlet::kernels().name; }, "The one that is used.");
  moonlet::bind_weights(m);
  moonlet::bind_attention(m);
  moonlet::bind_layer(m);
  moonlet::bind_limits(m);
}
