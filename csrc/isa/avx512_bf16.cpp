// What avx512_vnni lacks: the dot product of bfloat16. All else is that set's.

#include <immintrin.h>

#include "../kernels.h"

namespace moonlet {
namespace {
#include "avx512_vec.inc"
#include "math.inc"
#include "attention.inc"
}  // namespace

extern constexpr AttentionKernels avx512_bf16_attention = attention_table;

}  // namespace moonlet
