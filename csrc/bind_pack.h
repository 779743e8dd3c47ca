// From the names of types that Python gives to panels and packing; see pack.h.

#pragma once

#include <algorithm>
#include <optional>

#include "bind.h"
#include "matrix.h"
#include "pack.h"
#include "threads.h"

namespace moonlet {

inline const StoredKind& stored_kind(const std::string& name) {
  const StoredKind* found = find_stored(name.c_str());
  require(found != nullptr, "there is no kernel for the type " + name.substr(0, 40));
  return *found;
}

// `type` names a kind of panel, or a stored type and with it the panels that keep it.
inline Matrix shaped(const std::string& type, size_t rows, size_t columns) {
  const PanelKind* kind = find_panel(type.c_str());
  if (kind == nullptr) kind = find_panel(stored_kind(type).panel);
  require(rows > 0 && columns > 0 && rows < size_t{1} << 31 && columns < size_t{1} << 31 &&
              rows * columns < size_t{1} << 48,
          "a matrix of " + str(rows) + " x " + str(columns) + " cannot be packed");
  return {kind->is_float, kind->format, rows, columns, panel_shape(*kind, columns), nullptr};
}

// Code books stand in the package's Python half; an IQ type brings its own along when it is first packed.
inline void ensure_grid(const StoredKind& kind) {
  if (kind.grid == nullptr || has_grid(kind.grid)) return;
  const nb::object values = nb::module_::import_("moonlet.quant.grids").attr("grid")(kind.grid);
  const auto array = nb::cast<Array<float, 2>>(values);
  require(set_grid(kind.grid, array.data(), array.shape(0), array.shape(1)),
          std::string("moonlet.quant.grids does not hold the code book ") + kind.grid);
}

// Packs stored rows into a matrix whose place is `target`, on all threads.
inline void pack_matrix(const std::string& type, const Matrix& matrix, uint8_t* target, Array<uint8_t, 2> rows,
                        std::optional<Array<uint16_t, 2>> scale) {
  const StoredKind& from = stored_kind(type);
  const PanelKind& to = panel_kind(matrix.is_float, matrix.format);
  require(can_pack(from, to), type + " rows cannot be packed into a matrix of " + to.name);
  const size_t bytes = row_bytes(from, matrix.columns), groups = (matrix.columns + kGroup - 1) / kGroup;
  require(bytes > 0,
          "rows of " + str(matrix.columns) + " columns do not fill blocks of " + type + ", which hold " + str(from.values));
  require(rows.shape(0) == matrix.rows && rows.shape(1) == bytes,
          type + " rows are " + str(rows.shape(0)) + " x " + str(rows.shape(1)) + " bytes, wanted " + str(matrix.rows) +
              " x " + str(bytes));
  require(scale.has_value() == (type == "INT4"), "INT4 comes with scales, other types without");
  if (scale) {
    require(scale->shape(0) == matrix.rows && scale->shape(1) == groups,
            "INT4 scales are " + str(scale->shape(0)) + " x " + str(scale->shape(1)) + ", wanted " + str(matrix.rows) +
                " x " + str(groups));
  }
  ensure_grid(from);
  const uint8_t* source = rows.data();
  const uint16_t* scales = scale ? scale->data() : nullptr;
  const nb::gil_scoped_release unlocked;
  parallel_for(matrix.panels(), [&](size_t p) {
    const size_t first = p * kPanelRows, count = std::min(kPanelRows, matrix.rows - first);
    pack_panel(from, to, source + first * bytes, scales ? scales + first * groups : nullptr, count, matrix.columns,
               target + p * matrix.panel_bytes());
  });
}

}  // namespace moonlet
