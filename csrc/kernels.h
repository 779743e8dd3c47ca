// The table of functions that one instruction set provides, and the layouts they agree on. Plain data and
// pointers only: isa/*.cpp include nothing else of ours, so that no code compiled with wide instructions can be
// linked into a function that every machine runs.
//
// Weights of a matrix [rows, cols] are kept as panels of 16 rows. A panel is cut along the columns into blocks,
// and a block holds what its 16 rows need there, interleaved: of each row four codes of one byte at a time, so
// that one vector of 64 bytes meets four activations of one token. csrc/README.md draws it.
//
// Activations are quantized to int8, in groups of 32 columns with a scale of their own (absmax / 127). A tile is
// up to max_tokens tokens; for each group it holds, for its n tokens,
//     int8  codes[n][32];  float scale[n];  int32 minus_sum[n];  int32 minus_low[n];  float ssum[n];  int32 minus_pair[n]
// minus_sum is minus the sum of the 32 codes, minus_low that of the first 16; ssum is minus_sum
// times scale; minus_pair holds minus the sums of both halves, 16 bits each.

#pragma once

#include <cstddef>
#include <cstdint>

namespace moonlet {

constexpr size_t kPanelRows = 16;
constexpr size_t kGroup = 32;
constexpr size_t kTokenGroupBytes = 52;  // of one token and one group in a tile

// How a panel stores its codes, drawn in csrc/README.md. The order is that of Kernels::gemm.
enum class Format : uint8_t {
  kQ4_0, kInt4, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kMXFP4, kIQ4_NL, kIQ4_XS, kTernary,
  kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K,
  kLevels16,  // what the types with code books (IQ1, IQ2, IQ3) become
  kCount
};

// A float panel: a block is 32 columns of [column][16 rows].
enum class FloatFormat : uint8_t { kF32, kF16, kBF16, kCount };

// out[t][16 p + r] for every panel p below `panels` and token t of the tile; out rows are out_stride floats apart.
using Gemm = void (*)(const uint8_t* weights, size_t panels, size_t panel_bytes, size_t blocks,
                      const uint8_t* tile, size_t tokens, float* out, size_t out_stride);
// The same for float panels; x: [tokens][columns], rows x_stride floats apart.
using FloatGemm = void (*)(const uint8_t* weights, size_t panels, size_t panel_bytes, size_t columns, const float* x,
                           size_t x_stride, size_t tokens, float* out, size_t out_stride);

// Latent attention works on blocks of 64 cached rows of bfloat16. Two numbers whose products are added up lie together
// in 32 bits, a pair: neighbouring columns of a row for the scores, neighbouring rows of a column for the values.
constexpr size_t kBlock = 64;
constexpr size_t kMaxRows = 64;    // queries in one call
constexpr size_t kCodeGroup = 64;  // columns of an 8-bit row that share a scale

struct AttentionKernels {
  void (*to_bfloat)(const float* x, uint16_t* out, size_t count);
  // An 8-bit row: int8 codes, then a float32 scale for every kCodeGroup of them.
  void (*bfloat_of_codes)(const uint8_t* row, size_t columns, uint16_t* out);
  // 64 rows as keys [pairs][64 rows] and values [tiles][32 pairs of rows][64 columns]; pairs is a multiple of 16.
  void (*rearrange)(const uint16_t* const* rows, size_t pairs, size_t tiles, uint32_t* keys, uint32_t* values);
  // `rows` queries [rows][pairs] look at the first `seen` rows of a block. The state of their softmax, which `first`
  // starts: the weighted sum of values out [rows][64 tiles], the largest score so far, the sum of the weights. Scores
  // are exponents of 2: `scale` includes 1 / ln 2. The 64 rows `next` (or nullptr) are fetched meanwhile.
  void (*attend)(const uint32_t* keys, const uint32_t* values, size_t pairs, size_t tiles, size_t seen, bool first,
                 float scale, const uint32_t* queries, size_t rows, float* out, float* max, float* total,
                 const uint8_t* const* next, size_t next_bytes);
  // Adds the state of other blocks; columns is 64 tiles.
  void (*merge)(float* out, float* max, float* total, const float* other, const float* other_max,
                const float* other_total, size_t rows, size_t columns);
  void (*divide)(const float* x, float by, float* out, size_t count);
};

struct Kernels {
  const char* name;
  size_t max_tokens;  // in a tile
  // Quantizes row t of a tile of `tokens`: `cols` floats, zero padded to 32 * groups.
  void (*quantize)(const float* x, size_t cols, size_t groups, uint8_t* tile, size_t tokens, size_t t);
  Gemm gemm[static_cast<size_t>(Format::kCount)];
  FloatGemm float_gemm[static_cast<size_t>(FloatFormat::kCount)];
  // out = silu(gate) * up
  void (*swiglu)(const float* gate, const float* up, float* out, size_t count);
  // out = x / rms(x) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, size_t count);
  AttentionKernels attention;
};

const Kernels& kernels();                       // the widest that this CPU can run, or what MOONLET_ISA forces
const Kernels* find_kernels(const char* name);  // nullptr: not built, or not for this CPU

}  // namespace moonlet
