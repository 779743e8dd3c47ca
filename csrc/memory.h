// Memory for weights: huge pages, spread over the NUMA nodes.

#pragma once

#include <cstddef>
#include <cstdint>

namespace moonlet {

// Zeroed; given back when destroyed.
class Memory {
 public:
  explicit Memory(size_t bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

size_t numa_nodes();

}  // namespace moonlet
