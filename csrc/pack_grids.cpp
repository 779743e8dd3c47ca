// Packing of the types with code books: groups of 8 or 4 values are rows of a grid with signs, or ternary rows shifted
// by an eighth. All their values are 16 levels at most, times d (2 s + 1) / 8 with a 4-bit s: the panel Levels16.

#include <array>
#include <vector>

#include "pack_rows.h"

namespace moonlet {
namespace {

// Levels times 8 / the type's own factor; level 15 - c is minus level c.
using Levels = std::array<int8_t, 16>;
constexpr Levels kIQ1 = {-9, -7, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7, 9};
constexpr Levels kIQ2 = {-43, -25, -8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 25, 43};
constexpr Levels kIQ3_XXS = {-124, -104, -88, -72, -56, -40, -24, -8, 8, 24, 40, 56, 72, 88, 104, 124};
constexpr Levels kIQ3_S = {-120, -104, -88, -72, -56, -40, -24, -8, 8, 24, 40, 56, 72, 88, 104, 120};

struct Grid {
  const char* name;
  size_t rows, width;
  const Levels& levels;
  float factor;  // level = factor * value + shift
  std::vector<uint64_t> codes{}, lowered{};  // of a row, a byte each; shifted up (IQ1) and down
};

Grid grids[] = {{"iq1", 2048, 8, kIQ1, 8},         {"iq2_xxs", 256, 8, kIQ2, 1}, {"iq2_xs", 512, 8, kIQ2, 1},
                {"iq2_s", 1024, 8, kIQ2, 1},       {"iq3_xxs", 256, 4, kIQ3_XXS, 2}, {"iq3_s", 512, 4, kIQ3_S, 8}};
Grid &iq1 = grids[0], &iq2_xxs = grids[1], &iq2_xs = grids[2], &iq2_s = grids[3], &iq3_xxs = grids[4],
     &iq3_s = grids[5];

Grid* find_grid(const char* name) {
  for (Grid& grid : grids) {
    if (std::strcmp(grid.name, name) == 0) return &grid;
  }
  return nullptr;
}

// The codes of a row whose levels are factor * value + shift; false if one is no level.
bool encode_row(const Grid& grid, const float* values, float shift, uint64_t* codes) {
  *codes = 0;
  for (size_t k = 0; k < grid.width; ++k) {
    size_t code = 0;
    while (code < 16 && grid.levels[code] != grid.factor * values[k] + shift) ++code;
    if (code == 16) return false;
    *codes |= static_cast<uint64_t>(code) << 8 * k;
  }
  return true;
}

// Byte k is 15 where bit k of the index is set: what turns codes into those of minus the values.
constexpr std::array<uint64_t, 256> kFlips = [] {
  std::array<uint64_t, 256> flips{};
  for (size_t i = 0; i < 256; ++i) {
    for (size_t k = 0; k < 8; ++k) flips[i] |= (i >> k & 1 ? uint64_t{15} : 0) << 8 * k;
  }
  return flips;
}();

// Seven sign bits stand for eight, an even number of them set.
uint64_t flips_of_7(uint32_t bits) {
  bits &= 127;
  return kFlips[bits | (__builtin_popcount(bits) & 1) << 7];
}

struct Block {  // of one row
  uint16_t d;
  uint8_t scales[16];  // s of 16 columns each
  uint64_t codes[32];  // of 8 columns each
};

void put(const Block& block, size_t r, uint8_t* panel) {
  uint8_t codes[256];
  std::memcpy(codes, block.codes, 256);
  for (size_t j = 0; j < 4; ++j) {
    for (size_t i = 0; i < 8; ++i) {
      const uint8_t* quad = codes + 64 * j + 4 * i;
      put32(panel + 512 * j, i, r, load32(quad) | load32(quad + 32) << 4);
    }
  }
  for (size_t g = 0; g < 8; ++g) {
    panel[2048 + 16 * g + r] = static_cast<uint8_t>(block.scales[2 * g] | block.scales[2 * g + 1] << 4);
  }
  put16(panel + 2176, r, block.d);
}

template <size_t bytes, class Decode>
void pack_blocks(const Rows& rows, size_t columns, const Levels& levels, uint8_t* panel, const Decode& decode) {
  for (size_t b = 0; b < columns / 256; ++b, panel += 2240) {
    for (size_t r = 0; r < kPanelRows; ++r) {
      Block block;
      decode(rows.at(r, b * bytes), block);
      put(block, r, panel);
    }
    for (size_t c = 0; c < 16; ++c) panel[2208 + c] = static_cast<uint8_t>(levels[c] + 128);
    std::memset(panel + 2224, 0, 16);
  }
}

uint8_t nibble(const uint8_t* bytes, size_t k) { return bytes[k / 2] >> 4 * (k % 2) & 15; }

}  // namespace

bool has_grid(const char* name) { return !find_grid(name)->codes.empty(); }

bool set_grid(const char* name, const float* values, size_t rows, size_t width) {
  Grid& grid = *find_grid(name);
  if (!grid.codes.empty()) return true;  // by another thread meanwhile, and perhaps in use
  if (rows != grid.rows || width != grid.width) return false;
  const float shift = &grid == &iq1 ? 1.0f : 0.0f;
  std::vector<uint64_t> codes(rows), lowered(rows);
  for (size_t row = 0; row < rows; ++row) {
    if (!encode_row(grid, values + row * width, shift, &codes[row])) return false;
    if (!encode_row(grid, values + row * width, -shift, &lowered[row])) return false;
  }
  grid.codes.swap(codes);
  grid.lowered.swap(lowered);
  return true;
}

void pack_iq1_s(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<50>(rows, columns, iq1.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = load16(p);
    for (size_t g = 0; g < 8; ++g) {
      const uint32_t word = load16(p + 34 + 2 * g);
      const auto& table = word & 0x8000 ? iq1.lowered : iq1.codes;
      for (size_t l = 0; l < 4; ++l) block.codes[4 * g + l] = table[p[2 + 4 * g + l] | (word >> 3 * l & 7) << 8];
      block.scales[2 * g] = block.scales[2 * g + 1] = word >> 12 & 7;
    }
  });
}

void pack_iq1_m(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<56>(rows, columns, iq1.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = 0;
    for (size_t k = 0; k < 4; ++k) {
      const uint32_t word = load16(p + 48 + 2 * k);
      block.d |= static_cast<uint16_t>(word >> 12 << 4 * k);
      for (size_t l = 0; l < 4; ++l) block.scales[4 * k + l] = word >> 3 * l & 7;
    }
    for (size_t k = 0; k < 32; ++k) {
      const uint32_t high = nibble(p + 32, k);
      block.codes[k] = (high & 8 ? iq1.lowered : iq1.codes)[p[k] | (high & 7) << 8];
    }
  });
}

void pack_iq2_xxs(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<66>(rows, columns, iq2_xxs.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = load16(p);
    for (size_t g = 0; g < 8; ++g) {
      const uint8_t* group = p + 2 + 8 * g;
      const uint32_t word = load32(group + 4);
      for (size_t l = 0; l < 4; ++l) block.codes[4 * g + l] = iq2_xxs.codes[group[l]] ^ flips_of_7(word >> 7 * l);
      block.scales[2 * g] = block.scales[2 * g + 1] = static_cast<uint8_t>(word >> 28);
    }
  });
}

void pack_iq2_xs(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<74>(rows, columns, iq2_xs.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = load16(p);
    for (size_t k = 0; k < 32; ++k) {
      const uint32_t word = load16(p + 2 + 2 * k);
      block.codes[k] = iq2_xs.codes[word & 511] ^ flips_of_7(word >> 9);
    }
    for (size_t k = 0; k < 16; ++k) block.scales[k] = nibble(p + 66, k);
  });
}

void pack_iq2_s(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<82>(rows, columns, iq2_s.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = load16(p);
    for (size_t k = 0; k < 32; ++k) {
      const uint32_t index = p[2 + k] | (p[66 + k / 4] >> 2 * (k % 4) & 3u) << 8;
      block.codes[k] = iq2_s.codes[index] ^ kFlips[p[34 + k]];
    }
    for (size_t k = 0; k < 16; ++k) block.scales[k] = nibble(p + 74, k);
  });
}

void pack_iq3_xxs(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<98>(rows, columns, iq3_xxs.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = load16(p);
    for (size_t g = 0; g < 8; ++g) {
      const uint32_t word = load32(p + 66 + 4 * g);
      for (size_t l = 0; l < 4; ++l) {
        const uint8_t* index = p + 2 + 8 * g + 2 * l;
        const uint64_t eight = iq3_xxs.codes[index[0]] | iq3_xxs.codes[index[1]] << 32;
        block.codes[4 * g + l] = eight ^ flips_of_7(word >> 7 * l);
      }
      block.scales[2 * g] = block.scales[2 * g + 1] = static_cast<uint8_t>(word >> 28);
    }
  });
}

void pack_iq3_s(const Rows& rows, size_t columns, uint8_t* panel) {
  pack_blocks<110>(rows, columns, iq3_s.levels, panel, [](const uint8_t* p, Block& block) {
    block.d = load16(p);
    for (size_t k = 0; k < 32; ++k) {
      const uint32_t high = p[66 + k / 4] >> 2 * (k % 4);
      const uint64_t first = iq3_s.codes[p[2 + 2 * k] | (high & 1) << 8];
      const uint64_t second = iq3_s.codes[p[3 + 2 * k] | (high >> 1 & 1) << 8];
      block.codes[k] = (first | second << 32) ^ kFlips[p[74 + k]];
    }
    for (size_t g = 0; g < 8; ++g) block.scales[2 * g] = block.scales[2 * g + 1] = nibble(p + 106, g);
  });
}

}  // namespace moonlet
