// Latent attention, absorbed, over a paged cache (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads of a token
// share the cached rows, which are keys in full and values in their first columns.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace moonlet {

// Rows of one layer. Position p of sequence s is row p % page_size of page table[s][p / page_size]. A row holds
// `columns` bfloat16; or, with 8 bits, as many int8 codes and then a float32 scale for every 64 of them.
struct Cache {
  uint8_t* pages = nullptr;  // [pages][page_size][row_bytes]
  size_t page_size = 0, columns = 0;
  bool eight_bits = false;
  const int32_t* table = nullptr;  // [sequences][max_pages]
  size_t max_pages = 0;

  size_t row_bytes() const { return row_bytes(columns, eight_bits); }
  static size_t row_bytes(size_t columns, bool eight_bits) {
    return eight_bits ? columns + 4 * ((columns + kCodeGroup - 1) / kCodeGroup) : 2 * columns;
  }
  uint8_t* row(int32_t sequence, size_t position) const {
    const auto page = static_cast<size_t>(table[static_cast<size_t>(sequence) * max_pages + position / page_size]);
    return pages + (page * page_size + position % page_size) * row_bytes();
  }
};

// Writes latent [tokens][columns] where `sequence` and `position` [tokens] say.
void append_latent(const Kernels& kernels, const Cache& cache, const float* latent, const int32_t* sequence,
                   const int32_t* position, size_t tokens);

// Token t of `sequence[t]` looks at positions 0 .. position[t]: out [tokens][heads][values] = softmax(scale q . rows)
// rows[:values], with q [tokens][heads][columns] and the weights rounded to bfloat16. The bits of a token's result
// depend on nothing but its query and its rows: not on the other tokens of the call, nor on the number of threads. A
// NaN or an infinity in a row reaches only the tokens that look at it.
void latent_attention(const Kernels& kernels, const Cache& cache, const float* q, const int32_t* sequence,
                      const int32_t* position, size_t tokens, size_t heads, size_t values, float scale, float* out);

}  // namespace moonlet
