#include <immintrin.h>

#include "../kernels.h"

namespace moonlet {
namespace {
#include "avx2_vec.inc"
#include "panel.inc"
#include "math.inc"
#include "attention.inc"
#include "plain.inc"
}  // namespace

extern constexpr Kernels avx2_kernels = table("avx2");

}  // namespace moonlet
