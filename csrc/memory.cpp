#include "memory.h"

#include <cstdio>
#include <new>
#include <string>

#include "threads.h"

#include <sys/mman.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moonlet {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Every thread reads every expert in its turn, so pages alternate between the nodes: all memory channels work.
void interleave(void* data, size_t size) {
#if defined(__linux__)
  const size_t nodes = numa_nodes();
  if (nodes < 2 || nodes > 64) return;
  constexpr int kInterleave = 3;  // MPOL_INTERLEAVE
  const unsigned long mask = nodes == 64 ? ~0ul : (1ul << nodes) - 1;
  syscall(SYS_mbind, data, size, kInterleave, &mask, sizeof(mask) * 8 + 1, 0);
#else
  (void)data, (void)size;
#endif
}

}  // namespace

size_t numa_nodes() {
  static const size_t nodes = [] {
    size_t count = 0;
    while (count < 64) {
      const std::string path = "/sys/devices/system/node/node" + std::to_string(count) + "/cpulist";
      std::FILE* file = std::fopen(path.c_str(), "r");
      if (file == nullptr) break;
      std::fclose(file);
      ++count;
    }
    return count ? count : 1;
  }();
  return nodes;
}

Memory::Memory(size_t bytes) : size_((bytes + kHugePage - 1) / kHugePage * kHugePage) {
  if (bytes == 0) return;
  // Small weights share no huge page: a tiny model must not take 2 MiB for each matrix.
  if (bytes < kHugePage / 2) size_ = (bytes + 4095) / 4096 * 4096;
  const size_t slack = size_ >= kHugePage ? kHugePage : 0;
  void* data = mmap(nullptr, size_ + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  auto* start = static_cast<uint8_t*>(data);
  if (slack) {  // huge pages begin at multiples of their size; the rest of the mapping is given back
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (before) munmap(start, before);
    if (slack > before) munmap(start + before + size_, slack - before);
    start += before;
#if defined(MADV_HUGEPAGE)
    madvise(start, size_, MADV_HUGEPAGE);
#endif
  }
  data_ = start;
  interleave(data_, size_);
  // The kernel hands out zeroed pages one fault after the other; all threads at once take them several times faster.
  if (size_ >= 2 * kHugePage) {
    parallel_for(size_ / kHugePage, [start](size_t i) { *static_cast<volatile uint8_t*>(start + i * kHugePage) = 0; });
  }
}

Memory::~Memory() {
  if (data_) munmap(data_, size_);
}

}  // namespace moonlet
