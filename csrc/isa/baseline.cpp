#include "../kernels.h"

namespace moonlet {
namespace {
#include "baseline_vec.inc"
#include "panel.inc"
#include "math.inc"
#include "attention.inc"
#include "plain.inc"
}  // namespace

extern constexpr Kernels baseline_kernels = table("baseline");

}  // namespace moonlet
