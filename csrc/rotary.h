// Rotary positions: the last columns of rows turned in adjacent pairs.

#pragma once

#include <cstddef>

namespace moonlet {

// x [tokens][rows][width]: of each row the last 2 * pairs columns, turned by the token's angles (cos, sin
// [tokens][pairs]), become the last columns of the row of out [tokens][rows][out_width], whose others stay as they are.
// out may be x.
void rotate(const float* x, size_t width, const float* cos, const float* sin, size_t tokens, size_t rows, size_t pairs,
            float* out, size_t out_width);

}  // namespace moonlet
