#include "peaks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cpu.h"
#include "threads.h"

namespace moonlet {
namespace {

constexpr size_t kPiece = size_t{2} << 20;  // what a thread takes at once

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The sum of 64-bit words, in eight sums of their own so that no load waits for another. Vectors as wide as the CPU
// has them: with narrower ones a core asks for less than memory could give.
#define MOONLET_SUM(name, target_options, vector_bytes)                                      \
  [[gnu::target(target_options), gnu::noinline]] uint64_t name(const uint8_t* bytes, size_t count) { \
    using Vector = uint64_t __attribute__((vector_size(vector_bytes)));                      \
    const auto* from = reinterpret_cast<const Vector*>(bytes);                               \
    Vector a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {};                   \
    for (const auto* end = from + count / vector_bytes; from != end; from += 8) {            \
      a += from[0], b += from[1], c += from[2], d += from[3];                                \
      e += from[4], f += from[5], g += from[6], h += from[7];                                \
    }                                                                                        \
    const Vector all = ((a + b) + (c + d)) + ((e + f) + (g + h));                            \
    uint64_t sum = 0;                                                                        \
    for (size_t i = 0; i < vector_bytes / 8; ++i) sum += all[i];                             \
    return sum;                                                                              \
  }
using Sum = uint64_t (*)(const uint8_t* bytes, size_t count);

#if defined(__x86_64__)
MOONLET_SUM(sum_16, "sse2", 16)
MOONLET_SUM(sum_32, "avx2", 32)
MOONLET_SUM(sum_64, "avx512f", 64)
Sum widest_sum() {
  return __builtin_cpu_supports("avx512f") ? sum_64 : __builtin_cpu_supports("avx2") ? sum_32 : sum_16;
}
#elif defined(__aarch64__)
MOONLET_SUM(sum_16, "arch=armv8-a", 16)
Sum widest_sum() { return sum_16; }
#else
uint64_t plain_sum(const uint8_t* bytes, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count / 8; ++i) sum += reinterpret_cast<const uint64_t*>(bytes)[i];
  return sum;
}
Sum widest_sum() { return plain_sum; }
#endif

// A loop over independent chains of one instruction. Chains go through an empty asm in each round, so that no compiler
// can take work out of the loop; the target belongs to this function alone.
#define MOONLET_CHAINS(name, target_options, Type, count, start, step)              \
  [[gnu::target(target_options), gnu::noinline]] void name(size_t rounds) {         \
    Type chain[count];                                                              \
    MOONLET_UNROLL for (size_t k = 0; k < count; ++k) chain[k] = start;             \
    Type a = start, b = start;                                                      \
    MOONLET_BARRIER(b);                                                             \
    for (size_t round = 0; round < rounds; ++round) {                               \
      MOONLET_BARRIER(a);                                                           \
      MOONLET_UNROLL for (size_t k = 0; k < count; ++k) {                           \
        chain[k] = step;                                                            \
        MOONLET_BARRIER(chain[k]);                                                  \
      }                                                                             \
    }                                                                               \
  }
#define MOONLET_UNROLL _Pragma("GCC unroll 16")

struct Loop {
  std::string_view isa;
  Operation operation;
  void (*run)(size_t rounds);
  double operations;  // in a round
};

#if defined(__x86_64__)

#define MOONLET_BARRIER(x) asm volatile("" : "+v"(x))
MOONLET_CHAINS(sse2_dot, "sse2", __m128i, 8, _mm_set1_epi16(1), _mm_add_epi32(b, _mm_madd_epi16(chain[k], a)))
MOONLET_CHAINS(sse2_float, "sse2", __m128, 8, _mm_set1_ps(0.5f), _mm_add_ps(_mm_mul_ps(chain[k], a), b))
MOONLET_CHAINS(avx2_dot, "avx2", __m256i, 8, _mm256_set1_epi8(1),
               _mm256_add_epi32(chain[k], _mm256_madd_epi16(_mm256_maddubs_epi16(a, chain[k]), b)))
MOONLET_CHAINS(avx2_float, "avx2,fma", __m256, 10, _mm256_set1_ps(0.5f), _mm256_fmadd_ps(chain[k], a, b))
MOONLET_CHAINS(avx512_dot, "avx512f,avx512vnni", __m512i, 12, _mm512_set1_epi8(1),
               _mm512_dpbusd_epi32(chain[k], a, b))
MOONLET_CHAINS(avx512_float, "avx512f", __m512, 12, _mm512_set1_ps(0.5f), _mm512_fmadd_ps(chain[k], a, b))
MOONLET_CHAINS(avx512_bf16, "avx512f,avx512bf16", __m512, 12, _mm512_set1_ps(0.5f),
               _mm512_dpbf16_ps(chain[k], reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)))

constexpr Loop kLoops[] = {
    {"baseline", Operation::kInt8Dot, sse2_dot, 8 * 8 * 2},
    {"baseline", Operation::kFloatMultiplyAdd, sse2_float, 8 * 4 * 2},
    {"avx2", Operation::kInt8Dot, avx2_dot, 8 * 32 * 2},
    {"avx2", Operation::kFloatMultiplyAdd, avx2_float, 10 * 8 * 2},
    {"avx512_vnni", Operation::kInt8Dot, avx512_dot, 12 * 64 * 2},
    {"avx512_vnni", Operation::kFloatMultiplyAdd, avx512_float, 12 * 16 * 2},
    {"avx512_bf16", Operation::kInt8Dot, avx512_dot, 12 * 64 * 2},
    {"avx512_bf16", Operation::kBf16Dot, avx512_bf16, 12 * 32 * 2},
    {"avx512_bf16", Operation::kFloatMultiplyAdd, avx512_float, 12 * 16 * 2},
};

#elif defined(__aarch64__)

#define MOONLET_BARRIER(x) asm volatile("" : "+w"(x))
MOONLET_CHAINS(neon_widening_dot, "arch=armv8-a", int32x4_t, 12, vdupq_n_s32(1),
               vpadalq_s16(chain[k], vmull_s8(vget_low_s8(vreinterpretq_s8_s32(a)),
                                              vget_low_s8(vreinterpretq_s8_s32(b)))))
MOONLET_CHAINS(neon_dot, "arch=armv8.2-a+dotprod", int32x4_t, 12, vdupq_n_s32(1),
               vdotq_s32(chain[k], vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)))
MOONLET_CHAINS(neon_float, "arch=armv8-a", float32x4_t, 12, vdupq_n_f32(0.5f), vfmaq_f32(b, chain[k], a))

constexpr Loop kLoops[] = {
    {"baseline", Operation::kInt8Dot, neon_widening_dot, 12 * 8 * 2},
    {"baseline", Operation::kFloatMultiplyAdd, neon_float, 12 * 4 * 2},
    {"neon_dotprod", Operation::kInt8Dot, neon_dot, 12 * 16 * 2},
    {"neon_dotprod", Operation::kFloatMultiplyAdd, neon_float, 12 * 4 * 2},
};

#else

void plain_float(size_t rounds) {
  volatile float chain = 0.5f;
  for (size_t round = 0; round < rounds; ++round) chain = chain * 0.5f + 0.5f;
}
constexpr Loop kLoops[] = {{"baseline", Operation::kFloatMultiplyAdd, plain_float, 2}};

#endif

}  // namespace

ReadBuffer::ReadBuffer(size_t bytes) : memory_(std::max(bytes, kPiece)) {
  parallel_for(memory_.size() / kPiece, [&](size_t i) { std::fill_n(memory_.data() + i * kPiece, kPiece, uint8_t{1}); });
}

double ReadBuffer::read(bool all_threads) const {
  std::atomic<uint64_t> sum{0};  // used, so that no reading can be left out
  const size_t pieces = memory_.size() / kPiece;
  const Sum sum_of = widest_sum();
  const auto piece = [&](size_t i) { sum.fetch_add(sum_of(memory_.data() + i * kPiece, kPiece)); };
  const auto start = std::chrono::steady_clock::now();
  if (all_threads) {
    parallel_for(pieces, piece);
  } else {
    for (size_t i = 0; i < pieces; ++i) piece(i);
  }
  const double seconds = seconds_since(start);
  return sum.load() ? static_cast<double>(pieces * kPiece) / seconds : 0.0;
}

std::optional<double> peak(std::string_view isa, Operation operation, bool all_threads) {
  const auto supported = supported_isas();
  if (std::find(supported.begin(), supported.end(), isa) == supported.end()) return std::nullopt;
  for (const Loop& loop : kLoops) {
    if (loop.isa != isa || loop.operation != operation) continue;
    // Many short tasks, so that a thread that wakes late or loses its core does not decide the result.
    constexpr size_t kRounds = 50'000, kTasks = 20;
    const size_t tasks = all_threads ? kTasks * num_threads() : kTasks;
    double best = 0.0;
    for (int attempt = 0; attempt < 5; ++attempt) {
      const auto start = std::chrono::steady_clock::now();
      if (all_threads) {
        parallel_for(tasks, [&](size_t) { loop.run(kRounds); });
      } else {
        for (size_t i = 0; i < tasks; ++i) loop.run(kRounds);
      }
      best = std::max(best, static_cast<double>(tasks * kRounds) * loop.operations / seconds_since(start));
    }
    return best;
  }
  return std::nullopt;
}

}  // namespace moonlet
