#include "rotary.h"

#include "threads.h"

namespace moonlet {

void rotate(const float* x, size_t width, const float* cos, const float* sin, size_t tokens, size_t rows, size_t pairs,
            float* out, size_t out_width) {
  const auto one = [&](size_t t) {
    const float *c = cos + t * pairs, *s = sin + t * pairs;
    for (size_t row = t * rows; row < (t + 1) * rows; ++row) {
      const float* from = x + (row + 1) * width - 2 * pairs;
      float* to = out + (row + 1) * out_width - 2 * pairs;
      for (size_t i = 0; i < pairs; ++i) {
        const float even = from[2 * i], odd = from[2 * i + 1];
        to[2 * i] = even * c[i] - odd * s[i];
        to[2 * i + 1] = odd * c[i] + even * s[i];
      }
    }
  };
  if (tokens * rows * pairs < 16384) {
    for (size_t t = 0; t < tokens; ++t) one(t);
  } else {
    parallel_for(tokens, one);
  }
}

}  // namespace moonlet
