// How fast this machine can be at most: what it reads from memory, what its arithmetic units do from registers.

#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "memory.h"

namespace moonlet {

// Memory in huge pages that is read from end to end, again and again.
class ReadBuffer {
 public:
  explicit ReadBuffer(size_t bytes);  // rounded up to whole pieces; throws std::bad_alloc
  size_t bytes() const { return memory_.size(); }
  // Bytes per second of one pass, on the calling thread alone or on the whole pool.
  double read(bool all_threads) const;

 private:
  Memory memory_;
};

enum class Operation { kInt8Dot, kBf16Dot, kFloatMultiplyAdd };

// Operations per second (a multiplication and an addition are two) that the instructions of `isa` reach from
// registers; nothing where it has none for this, or this CPU does not run it. Takes a few milliseconds.
std::optional<double> peak(std::string_view isa, Operation operation, bool all_threads);

}  // namespace moonlet
