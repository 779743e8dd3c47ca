// Packed weights as Python holds them: shared by the files of bindings.

#pragma once

#include <algorithm>

#include <nanobind/stl/shared_ptr.h>

#include "bind.h"
#include "ffn.h"
#include "matrix.h"
#include "memory.h"
#include "pack.h"
#include "threads.h"

namespace moonlet {

using ReadBytes = Array<uint8_t, 1>;

inline Stored stored_type(const std::string& name) {
  const Stored* found = find_stored(name.c_str());
  require(found != nullptr, "there is no kernel for the type " + name);
  return *found;
}

// Memory of ours, or an array of somebody else that lives as long as this does.
struct Storage {
  std::unique_ptr<Memory> own;
  nb::object other;
  uint8_t* data = nullptr;
  size_t size = 0;
  bool writable = true;

  Storage(size_t bytes, std::optional<ReadBytes> given) : size(bytes) {
    if (!given) {
      own = std::make_unique<Memory>(bytes);
      data = own->data();
      return;
    }
    require(given->size() == bytes, "the packed data have " + str(given->size()) + " bytes, wanted " + str(bytes));
    require(reinterpret_cast<uintptr_t>(given->data()) % 64 == 0, "the packed data must be aligned to 64 bytes");
    other = nb::cast(*given);
    data = const_cast<uint8_t*>(given->data());
    writable = false;
  }
};

inline Matrix shaped(const std::string& type, size_t rows, size_t columns) {
  require(rows > 0 && columns > 0 && rows < size_t{1} << 31 && columns < size_t{1} << 31,
          "a matrix of " + str(rows) + " x " + str(columns) + " cannot be packed");
  const StoredInfo& kind = info(stored_type(type));
  const PanelShape shape = panel_shape(kind.is_float, kind.format, columns);
  return {kind.is_float, kind.format, rows, columns, shape, nullptr};
}

// Packs stored rows into a matrix whose place is `target`, on all threads.
inline void pack_matrix(const std::string& type, const Matrix& matrix, uint8_t* target, Array<uint8_t, 2> rows,
                 std::optional<Array<uint16_t, 2>> scale) {
  const Stored from = stored_type(type);
  const StoredInfo& kind = info(from);
  require(kind.values <= 2 || matrix.columns % kind.values == 0,
          "rows of " + str(matrix.columns) + " columns do not fit " + type + ", whose blocks hold " + str(kind.values));
  const size_t row_bytes = from == Stored::kInt4 ? (matrix.columns + 7) / 8 * 4
                                                 : matrix.columns / kind.values * kind.bytes;
  require(rows.shape(0) == matrix.rows && rows.shape(1) == row_bytes,
          type + " rows are " + str(rows.shape(0)) + " x " + str(rows.shape(1)) + " bytes, wanted " + str(matrix.rows) +
              " x " + str(row_bytes));
  const size_t groups = (matrix.columns + kGroup - 1) / kGroup;
  require(scale.has_value() == (from == Stored::kInt4), "INT4 comes with scales, other types without");
  if (scale) {
    require(scale->shape(0) == matrix.rows && scale->shape(1) == groups,
            "INT4 scales are " + str(scale->shape(0)) + " x " + str(scale->shape(1)) + ", wanted " + str(matrix.rows) +
                " x " + str(groups));
  }
  const bool same = kind.is_float == matrix.is_float && kind.format == matrix.format;
  require(same || (kind.is_float && !matrix.is_float && matrix.format == static_cast<uint8_t>(Format::kQ8_0)),
          type + " rows cannot be packed into this matrix: only floats can become Q8_0");
  const uint8_t* source = rows.data();
  const uint16_t* scales = scale ? scale->data() : nullptr;
  const nb::gil_scoped_release unlocked;
  parallel_for(matrix.panels(), [&](size_t p) {
    const size_t first = p * kPanelRows, count = std::min(kPanelRows, matrix.rows - first);
    uint8_t* panel = target + p * matrix.panel_bytes();
    if (same) {
      pack_panel(from, source + first * row_bytes, row_bytes, scales ? scales + first * groups : nullptr, count,
                 matrix.columns, panel);
    } else {
      quantize_panel(from, source + first * row_bytes, row_bytes, count, matrix.columns, panel);
    }
  });
}

// `count` matrices of one shape and type, one behind the other.
class PackedMatrix {
 public:
  PackedMatrix(const std::string& type, size_t rows, size_t columns, size_t count, std::optional<ReadBytes> data)
      : type(type), matrix(shaped(type, rows, columns)), count(count), storage_(matrix.bytes() * count, data) {
    require(count > 0, "a stack of no matrices");
    matrix.data = storage_.data;
  }

  void pack(const std::string& from, Array<uint8_t, 2> rows, std::optional<Array<uint16_t, 2>> scale, size_t index) {
    require(storage_.writable, "these packed data belong to a file");
    require(index < count, "matrix " + str(index) + " of " + str(count));
    pack_matrix(from, matrix, storage_.data + index * matrix.bytes(), rows, scale);
  }

  size_t nbytes() const { return storage_.size; }
  ReadBytes bytes() const { return ReadBytes(storage_.data, {storage_.size}, nb::find(this)); }

  std::string type;
  Matrix matrix;
  size_t count;

 private:
  Storage storage_;
};

class PackedFfn {
 public:
  PackedFfn(std::shared_ptr<PackedMatrix> gate, std::shared_ptr<PackedMatrix> up, std::shared_ptr<PackedMatrix> down)
      : gate_(gate), up_(up), down_(down) {
    const Matrix &g = gate->matrix, &u = up->matrix, &d = down->matrix;
    require(g.rows == u.rows && g.columns == u.columns && d.columns == g.rows && d.rows == g.columns,
            "gate, up and down do not fit together");
    require(!g.is_float && !u.is_float && !d.is_float, "a feed-forward network takes quantized matrices only");
  }
  Ffn ffn() const { return {gate_->matrix, up_->matrix, down_->matrix}; }
  size_t nbytes() const { return gate_->nbytes() + up_->nbytes() + down_->nbytes(); }

 private:
  std::shared_ptr<PackedMatrix> gate_, up_, down_;
};

constexpr size_t kExpertAlignment = 4096;  // one expert is one read from disk

class PackedExperts {
 public:
  PackedExperts(size_t count, size_t hidden, size_t width, const std::string& gate, const std::string& up,
                const std::string& down, std::optional<ReadBytes> data)
      : experts_(layout(count, hidden, width, gate, up, down)), storage_(experts_.count * experts_.expert_bytes, data) {
    Ffn& f = experts_.first;
    f.gate.data = storage_.data;
    f.up.data = f.gate.data + f.gate.bytes();
    f.down.data = f.up.data + f.up.bytes();
  }

  void pack(size_t expert, const std::string& which, const std::string& type, Array<uint8_t, 2> rows,
            std::optional<Array<uint16_t, 2>> scale) {
    require(storage_.writable, "these packed data belong to a file");
    require(expert < experts_.count, "expert " + str(expert) + " of " + str(experts_.count));
    const Ffn ffn = experts_.at(expert);
    require(which == "gate" || which == "up" || which == "down", "an expert has gate, up and down, not " + which);
    const Matrix& matrix = which == "gate" ? ffn.gate : which == "up" ? ffn.up : ffn.down;
    pack_matrix(type, matrix, const_cast<uint8_t*>(matrix.data), rows, scale);
  }

  const Experts& experts() const { return experts_; }
  size_t nbytes() const { return storage_.size; }
  size_t expert_bytes() const { return experts_.expert_bytes; }
  ReadBytes bytes() const { return ReadBytes(storage_.data, {storage_.size}, nb::find(this)); }

 private:
  static Experts layout(size_t count, size_t hidden, size_t width, const std::string& gate, const std::string& up,
                        const std::string& down) {
    require(count > 0 && count < size_t{1} << 20, "a layer of " + str(count) + " experts");
    Experts experts;
    experts.count = count;
    experts.first = {shaped(gate, width, hidden), shaped(up, width, hidden), shaped(down, hidden, width)};
    const Ffn& f = experts.first;
    require(!f.gate.is_float && !f.up.is_float && !f.down.is_float, "experts are quantized matrices only");
    const size_t bytes = f.gate.bytes() + f.up.bytes() + f.down.bytes();
    experts.expert_bytes = (bytes + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
    return experts;
  }

  Experts experts_;
  Storage storage_;
};

}  // namespace moonlet
