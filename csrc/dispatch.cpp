#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "kernels.h"

namespace moonlet {

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_vnni_kernels;
extern const AttentionKernels avx512_bf16_attention;
#elif defined(__aarch64__)
extern const Kernels neon_dotprod_kernels;
#endif

namespace {

#if defined(__x86_64__)
Kernels with_bf16() {
  Kernels table = avx512_vnni_kernels;
  table.name = "avx512_bf16";
  table.attention = avx512_bf16_attention;
  return table;
}
#endif

const Kernels* built(std::string_view name) {
#if defined(__x86_64__)
  static const Kernels avx512_bf16_kernels = with_bf16();
  if (name == "avx512_bf16") return &avx512_bf16_kernels;
  if (name == "avx2") return &avx2_kernels;
  if (name == "avx512_vnni") return &avx512_vnni_kernels;
#elif defined(__aarch64__)
  if (name == "neon_dotprod") return &neon_dotprod_kernels;
#endif
  return name == "baseline" ? &baseline_kernels : nullptr;
}

const Kernels& choose() {
  const char* forced = std::getenv("MOONLET_ISA");
  if (forced == nullptr || *forced == '\0') return *built(supported_isas().back());
  if (const Kernels* table = find_kernels(forced)) return *table;
  std::string names;
  for (std::string_view name : supported_isas()) names += (names.empty() ? "" : ", ") + std::string(name);
  throw std::invalid_argument("MOONLET_ISA is " + std::string(forced).substr(0, 40) + ", but this CPU runs " + names);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const Kernels* find_kernels(const char* name) {
  for (std::string_view supported : supported_isas()) {
    if (supported == name) return built(supported);
  }
  return nullptr;
}

}  // namespace moonlet
