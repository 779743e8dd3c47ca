#include <immintrin.h>

#include "../kernels.h"

namespace moonlet {
namespace {
#include "avx512_vec.inc"
#include "panel.inc"
#include "math.inc"
#include "attention.inc"
#include "plain.inc"
}  // namespace

extern constexpr Kernels avx512_vnni_kernels = table("avx512_vnni");

}  // namespace moonlet
