#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

namespace moonlet {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  return cpus;
}

// One CPU for each physical core, in order: the second hyperthread of a core adds nothing to kernels that keep
// its multipliers or the memory busy.
std::vector<int> core_cpus() {
  std::vector<int> cpus;
  std::set<std::string> seen;
  for (int cpu : allowed_cpus()) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings) || seen.insert(siblings).second) cpus.push_back(cpu);
  }
  return cpus;
}
#else
std::vector<int> core_cpus() { return std::vector<int>(std::thread::hardware_concurrency()); }
#endif

// As many as there are cores, or what MOONLET_THREADS says.
size_t default_threads() {
  const char* text = std::getenv("MOONLET_THREADS");
  if (text == nullptr || *text == 0) return std::max<size_t>(1, core_cpus().size());
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  if (*end != 0 || count < 1 || count > 1024) {
    throw std::invalid_argument("MOONLET_THREADS is '" + std::string(text) + "', but it must be from 1 to 1024");
  }
  return static_cast<size_t>(count);
}

// Workers look for work this long before they sleep: longer than Python needs between two calls of a layer.
constexpr auto kSpin = std::chrono::microseconds(200);

class Pool {
 public:
  explicit Pool(size_t threads) {
    const std::vector<int> cpus = core_cpus();
    workers_.reserve(threads);
    for (size_t i = 1; i < threads; ++i) {
      try {
        workers_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        break;  // the system allows no more; those that run do the work
      }
      // The caller's thread stays unpinned: it is Python's, and the scheduler finds the core that is left.
      if (threads == cpus.size()) pin(workers_.back(), cpus[i]);
    }
  }

  ~Pool() {
    stopping_ = true;
    claim_.fetch_add(uint64_t{1} << 32);
    claim_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  size_t size() const { return workers_.size() + 1; }

  void run(size_t count, Task task, const void* context) {
    const std::lock_guard lock(one_job_);
    // High half: number of the job; low half: the next task. A claim is valid only for the job it was read from.
    const uint64_t job = ((claim_.load() >> 32) + 1) << 32;
    // The last job is closed first: who comes late to it must not meet its number beside the fields of the next one.
    claim_.store(job - 1);
    task_ = task;
    context_ = context;
    count_ = count;
    done_ = 0;
    claim_.store(job);
    if (sleeping_.load() > 0) claim_.notify_all();
    help(job);
    while (done_.load(std::memory_order_acquire) != count) pause();
  }

 private:
  static void pin(std::thread& worker, int cpu) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(worker.native_handle(), sizeof(set), &set);
#else
    (void)worker, (void)cpu;
#endif
  }

  // Takes tasks of `job` until none is left. The fields are read before a task is claimed: a claim succeeds only
  // while that job still runs, and no claim of it is left when they change, so they are its own.
  void help(uint64_t job) {
    for (;;) {
      uint64_t claim = claim_.load();
      const size_t count = count_, index = claim & 0xffffffff;
      const Task task = task_;
      const void* context = context_;
      if (claim >> 32 != job >> 32 || index >= count) return;
      if (!claim_.compare_exchange_weak(claim, claim + 1)) continue;
      task(context, index);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  void work() {
    uint64_t last = 0;
    while (!stopping_) {
      const uint64_t job = next_job(last);
      help(job);
      last = job;
    }
  }

  // Waits for a job other than `last`, which has been helped with.
  uint64_t next_job(uint64_t last) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (unsigned i = 1;; ++i) {
      const uint64_t claim = claim_.load(std::memory_order_acquire);
      if (claim >> 32 != last >> 32) return claim;
      if (i % 64 == 0 && std::chrono::steady_clock::now() > until) {
        ++sleeping_;
        claim_.wait(claim);
        --sleeping_;
        continue;
      }
      pause();
    }
  }

  std::mutex one_job_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_{false};
  std::atomic<Task> task_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<size_t> count_{0};
  alignas(64) std::atomic<uint64_t> claim_{0};
  std::atomic<size_t> sleeping_{0};
  alignas(64) std::atomic<size_t> done_{0};
};

// Whoever runs something holds the pool, so that it can be replaced at any time. Never destroyed at exit, and
// dropped in a forked child, where its threads do not exist.
struct Current {
  std::mutex mutex;
  std::shared_ptr<Pool> pool;
};
Current* current = new Current;

std::shared_ptr<Pool> the_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current = new Current; });
  (void)registered;
  const std::lock_guard lock(current->mutex);
  if (!current->pool) current->pool = std::make_shared<Pool>(default_threads());
  return current->pool;
}

}  // namespace

size_t num_threads() { return the_pool()->size(); }

void set_num_threads(size_t count) {
  if (count == 0) count = default_threads();
  if (the_pool()->size() == count) return;
  auto pool = std::make_shared<Pool>(count);
  const std::lock_guard lock(current->mutex);
  current->pool.swap(pool);
}

void parallel_for(size_t count, Task task, const void* context) {
  if (count == 0) return;
  if (count == 1) return task(context, 0);
  the_pool()->run(count, task, context);
}

}  // namespace moonlet
