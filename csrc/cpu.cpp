#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace moonlet {
namespace {

#if defined(__x86_64__)

// The compiler's builtins also ask whether the operating system saves the wide registers. F16C is not asked
// for: not every clang knows that name, and every CPU with AVX2 and FMA has it.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

#elif defined(__aarch64__)

bool has_neon_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

#endif

}  // namespace

std::vector<std::string_view> supported_isas() {
  std::vector<std::string_view> names{"baseline"};
#if defined(__x86_64__)
  if (has_avx2()) {
    names.push_back("avx2");
    if (has_avx512_vnni()) names.push_back("avx512_vnni");
    if (has_avx512_bf16()) names.push_back("avx512_bf16");
  }
#elif defined(__aarch64__)
  if (has_neon_dotprod()) names.push_back("neon_dotprod");
#endif
  return names;
}

}  // namespace moonlet
