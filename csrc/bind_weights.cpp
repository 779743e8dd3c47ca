// Packed matrices, experts and feed-forward networks, as Python sees them.

#include "layer.h"
#include "packed.h"

namespace moonlet {
namespace {

using Activation = nb::ndarray<const float, nb::numpy, nb::c_contig, nb::device::cpu>;

// x [T, count, n], n at least the columns, of which the first are used; [T, n] will do when count is 1. The same for
// out, of whose rows the first are written; without it a new array is made.
NewArray<float> multiply(const PackedMatrix& packed, Activation x, std::optional<NewArray<float>> given,
                         const Isa& isa) {
  const Matrix& m = packed.matrix;
  const size_t dims = packed.count == 1 && x.ndim() == 2 ? 2 : 3;
  const auto is_wide = [&](const auto& array, size_t width) {
    return array.ndim() == dims && array.shape(dims - 1) >= width && (dims == 2 || array.shape(1) == packed.count);
  };
  require(is_wide(x, m.columns), "the activations want " + str(dims) + " dimensions, " + str(packed.count) +
                                     " matrices and " + str(m.columns) + " columns");
  const size_t tokens = x.shape(0);
  if (!given) given = dims == 3 ? new_array({tokens, packed.count, m.rows}) : new_array({tokens, m.rows});
  require(is_wide(*given, m.rows) && given->shape(0) == tokens,
          "the output wants room for " + str(tokens) + " tokens of " + str(m.rows) + " rows");
  const size_t x_step = x.shape(dims - 1), out_step = given->shape(dims - 1);
  const Kernels& table = chosen(isa);
  const float* from = x.data();
  float* to = given->data();
  {
    const nb::gil_scoped_release unlocked;
    linear_stack(table, m, packed.count, from, packed.count * x_step, x_step, tokens, to, packed.count * out_step,
                 out_step);
  }
  return *given;
}

// x [T, n]: the first columns of each row, as many as there are weights, are normed; the others are copied.
NewArray<float> rms_norm(Array<float, 2> x, Array<float, 1> weight, float eps, const Isa& isa) {
  const size_t tokens = x.shape(0), width = x.shape(1), count = weight.shape(0);
  require(count > 0 && count <= width, "a norm over " + str(count) + " of " + str(width) + " columns");
  auto out = new_array({tokens, width});
  const Kernels& table = chosen(isa);
  const float *from = x.data(), *gain = weight.data();
  float* to = out.data();
  const nb::gil_scoped_release unlocked;
  norm_rows(table, from, width, gain, count, eps, tokens, to);
  return out;
}

NewArray<float> run_ffn(const PackedExperts* experts, const PackedFfn* shared, Array<float, 2> x,
                        std::optional<Array<int32_t, 2>> ids, std::optional<Array<float, 2>> weights, const Isa& isa) {
  require(experts || shared, "neither experts nor a shared network");
  require((experts != nullptr) == ids.has_value() && ids.has_value() == weights.has_value(),
          "experts come with ids and weights, a network alone without");
  const Ffn alone = shared ? shared->ffn() : Ffn{};
  const Matrix& gate = experts ? experts->experts().first.gate : alone.gate;
  require(x.shape(1) == gate.columns && (!shared || alone.gate.columns == gate.columns),
          "the activations have " + str(x.shape(1)) + " columns, wanted " + str(gate.columns));
  const size_t tokens = x.shape(0), top_k = ids ? ids->shape(1) : 0;
  if (ids) {
    require(ids->shape(0) == tokens && weights->shape(0) == tokens && weights->shape(1) == top_k,
            "ids and weights must be [" + str(tokens) + ", top_k] alike");
    for (size_t i = 0; i < tokens * top_k; ++i) {
      const int32_t id = ids->data()[i];
      require(id >= 0 && static_cast<size_t>(id) < experts->experts().count,
              "expert " + std::to_string(id) + " of " + str(experts->experts().count));
    }
  }
  auto out = new_array({tokens, gate.columns});
  const Kernels& table = chosen(isa);
  {
    const nb::gil_scoped_release unlocked;
    ffn(table, experts ? &experts->experts() : nullptr, shared ? &alone : nullptr, x.data(), tokens,
        ids ? ids->data() : nullptr, weights ? weights->data() : nullptr, top_k, out.data());
  }
  return out;
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::class_<PackedMatrix>(m, "Matrix")
      .def(nb::init<const std::string&, size_t, size_t, size_t, std::optional<ReadBytes>>(), nb::arg("type"),
           nb::arg("rows"), nb::arg("columns"), nb::arg("count") = 1, nb::arg("data").noconvert() = nb::none())
      .def("pack", &PackedMatrix::pack, nb::arg("type"), nb::arg("rows").noconvert(),
           nb::arg("scale").noconvert() = nb::none(), nb::arg("index") = 0)
      .def("__call__", &multiply, nb::arg("x").noconvert(), nb::arg("out").noconvert() = nb::none(),
           nb::arg("isa") = nb::none())
      .def_ro("type", &PackedMatrix::type)
      .def_ro("count", &PackedMatrix::count)
      .def_prop_ro("rows", [](const PackedMatrix& p) { return p.matrix.rows; })
      .def_prop_ro("columns", [](const PackedMatrix& p) { return p.matrix.columns; })
      .def_prop_ro("nbytes", &PackedMatrix::nbytes)
      .def_prop_ro("bytes", &PackedMatrix::bytes);
  nb::class_<PackedFfn>(m, "Ffn")
      .def(nb::init<std::shared_ptr<PackedMatrix>, std::shared_ptr<PackedMatrix>, std::shared_ptr<PackedMatrix>>(),
           nb::arg("gate"), nb::arg("up"), nb::arg("down"))
      .def_prop_ro("nbytes", &PackedFfn::nbytes);
  nb::class_<PackedExperts>(m, "Experts")
      .def(nb::init<size_t, size_t, size_t, const std::string&, const std::string&, const std::string&,
                    std::optional<ReadBytes>>(),
           nb::arg("count"), nb::arg("hidden"), nb::arg("width"), nb::arg("gate"), nb::arg("up"), nb::arg("down"),
           nb::arg("data").noconvert() = nb::none())
      .def("pack", &PackedExperts::pack, nb::arg("expert"), nb::arg("which"), nb::arg("type"),
           nb::arg("rows").noconvert(), nb::arg("scale").noconvert() = nb::none())
      .def_prop_ro("nbytes", &PackedExperts::nbytes)
      .def_prop_ro("expert_bytes", &PackedExperts::expert_bytes)
      .def_prop_ro("bytes", &PackedExperts::bytes);
  m.def("ffn", &run_ffn, nb::arg("experts").none(), nb::arg("shared").none(), nb::arg("x").noconvert(),
        nb::arg("ids").noconvert() = nb::none(), nb::arg("weights").noconvert() = nb::none(),
        nb::arg("isa") = nb::none());
  m.def("rms_norm", &rms_norm, nb::arg("x").noconvert(), nb::arg("weight").noconvert(), nb::arg("eps"),
        nb::arg("isa") = nb::none());
  m.def("panel_type", [](const std::string& stored) { return std::string(stored_kind(stored).panel); },
        nb::arg("stored"));
  m.def("num_threads", &num_threads);
  m.def(
      "set_num_threads",
      [](size_t count) {
        require(count <= kMaxThreads, str(count) + " threads, wanted at most " + str(kMaxThreads));
        set_num_threads(count);
      },
      nb::arg("count"));
}

}  // namespace moonlet
