#include <arm_neon.h>

#include "../kernels.h"

namespace moonlet {
namespace {
#include "neon_vec.inc"
#include "panel.inc"
#include "math.inc"
#include "attention.inc"
#include "plain.inc"
}  // namespace

extern constexpr Kernels neon_dotprod_kernels = table("neon_dotprod");

}  // namespace moonlet
