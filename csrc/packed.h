// Packed weights as Python holds them: shared by the files of bindings.

#pragma once

#include <algorithm>

#include <nanobind/stl/shared_ptr.h>

#include "bind_pack.h"
#include "ffn.h"
#include "matrix.h"
#include "memory.h"
#include "pack.h"
#include "threads.h"

namespace moonlet {

using ReadBytes = Array<uint8_t, 1>;

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

// Bytes of `count` pieces; larger than any address space is refused here, before the product wraps around.
inline size_t bytes_of(size_t bytes, size_t count) {
  require(count <= (size_t{1} << 47) / bytes, str(count) + " times " + str(bytes) + " bytes cannot be packed");
  return bytes * count;
}

// `count` matrices of one shape and type, one behind the other.
class PackedMatrix {
 public:
  PackedMatrix(const std::string& type, size_t rows, size_t columns, size_t count, std::optional<ReadBytes> data)
      : type(type), matrix(shaped(type, rows, columns)), count(count), storage_(bytes_of(matrix.bytes(), count), data) {
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
      : experts_(layout(count, hidden, width, gate, up, down)),
        storage_(bytes_of(experts_.expert_bytes, experts_.count), data) {
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
