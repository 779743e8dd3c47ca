// A persistent pool of threads. Nothing else in csrc knows about threads.

#pragma once

#include <cstddef>

namespace moonlet {

constexpr size_t kMaxThreads = 1024;
size_t num_threads();
// `count` threads from now on, at most kMaxThreads, the caller's included; 0: one for each physical core that this
// process may use. There are fewer where the system allows no more.
void set_num_threads(size_t count);

using Task = void (*)(const void* context, size_t index);

// task(context, i) for every i below count, spread over the pool and the calling thread; returns when all are
// done. Tasks must not throw and must not call parallel_for. Calls from several threads queue up.
void parallel_for(size_t count, Task task, const void* context);

template <class Function>
void parallel_for(size_t count, const Function& function) {
  parallel_for(
      count, [](const void* f, size_t i) { (*static_cast<const Function*>(f))(i); }, &function);
}

}  // namespace moonlet
