#include "pack.h"

#include <vector>

#include "pack_rows.h"

namespace moonlet {
namespace {

constexpr uint8_t id(Format format) { return static_cast<uint8_t>(format); }
constexpr uint8_t id(FloatFormat format) { return static_cast<uint8_t>(format); }

constexpr PanelKind kPanels[] = {
    {"F32", true, id(FloatFormat::kF32), 32, 2048},   {"F16", true, id(FloatFormat::kF16), 32, 1024},
    {"BF16", true, id(FloatFormat::kBF16), 32, 1024}, {"INT4", false, id(Format::kInt4), 64, 576},
    {"Q4_0", false, id(Format::kQ4_0), 64, 576},      {"Q4_1", false, id(Format::kQ4_1), 64, 640},
    {"Q5_0", false, id(Format::kQ5_0), 64, 704},      {"Q5_1", false, id(Format::kQ5_1), 64, 768},
    {"Q8_0", false, id(Format::kQ8_0), 64, 1088},     {"MXFP4", false, id(Format::kMXFP4), 64, 576},
    {"IQ4_NL", false, id(Format::kIQ4_NL), 64, 576},  {"IQ4_XS", false, id(Format::kIQ4_XS), 256, 2176},
    {"TQ2_0", false, id(Format::kTernary), 256, 1056}, {"Q2_K", false, id(Format::kQ2_K), 256, 1344},
    {"Q3_K", false, id(Format::kQ3_K), 256, 1760},    {"Q4_K", false, id(Format::kQ4_K), 256, 2304},
    {"Q5_K", false, id(Format::kQ5_K), 256, 2816},    {"Q6_K", false, id(Format::kQ6_K), 256, 3360},
    {"LEVELS16", false, id(Format::kLevels16), 256, 2240},
};

constexpr StoredKind kStored[] = {
    {"F32", 1, 4, "F32", pack_4_bytes, nullptr},
    {"F16", 1, 2, "F16", pack_2_bytes, nullptr},
    {"BF16", 1, 2, "BF16", pack_2_bytes, nullptr},
    {"INT4", 2, 1, "INT4", pack_int4, nullptr},
    {"Q4_0", 32, 18, "Q4_0", pack_q4_0, nullptr},
    {"Q4_1", 32, 20, "Q4_1", pack_q4_1, nullptr},
    {"Q5_0", 32, 22, "Q5_0", pack_q5_0, nullptr},
    {"Q5_1", 32, 24, "Q5_1", pack_q5_1, nullptr},
    {"Q8_0", 32, 34, "Q8_0", pack_q8_0, nullptr},
    {"MXFP4", 32, 17, "MXFP4", pack_mxfp4, nullptr},
    {"IQ4_NL", 32, 18, "IQ4_NL", pack_iq4_nl, nullptr},
    {"IQ4_XS", 256, 136, "IQ4_XS", pack_iq4_xs, nullptr},
    {"TQ1_0", 256, 54, "TQ2_0", pack_tq1_0, nullptr},
    {"TQ2_0", 256, 66, "TQ2_0", pack_tq2_0, nullptr},
    {"Q2_K", 256, 84, "Q2_K", pack_q2_k, nullptr},
    {"Q3_K", 256, 110, "Q3_K", pack_q3_k, nullptr},
    {"Q4_K", 256, 144, "Q4_K", pack_q4_k, nullptr},
    {"Q5_K", 256, 176, "Q5_K", pack_q5_k, nullptr},
    {"Q6_K", 256, 210, "Q6_K", pack_q6_k, nullptr},
    {"IQ1_S", 256, 50, "LEVELS16", pack_iq1_s, "iq1"},
    {"IQ1_M", 256, 56, "LEVELS16", pack_iq1_m, "iq1"},
    {"IQ2_XXS", 256, 66, "LEVELS16", pack_iq2_xxs, "iq2_xxs"},
    {"IQ2_XS", 256, 74, "LEVELS16", pack_iq2_xs, "iq2_xs"},
    {"IQ2_S", 256, 82, "LEVELS16", pack_iq2_s, "iq2_s"},
    {"IQ3_XXS", 256, 98, "LEVELS16", pack_iq3_xxs, "iq3_xxs"},
    {"IQ3_S", 256, 110, "LEVELS16", pack_iq3_s, "iq3_s"},
};

template <class Kind, size_t count>
const Kind* find(const Kind (&kinds)[count], const char* name) {
  for (const Kind& kind : kinds) {
    if (std::strcmp(kind.name, name) == 0) return &kind;
  }
  return nullptr;
}

bool is_q8_0(const PanelKind& kind) { return !kind.is_float && kind.format == id(Format::kQ8_0); }

PackRows* packer(const StoredKind& from, const PanelKind& to) {
  if (std::strcmp(from.panel, to.name) == 0) return from.pack;
  if (!is_q8_0(to)) return nullptr;
  if (std::strcmp(from.name, "F32") == 0) return quantize_f32;
  if (std::strcmp(from.name, "F16") == 0) return quantize_f16;
  if (std::strcmp(from.name, "BF16") == 0) return quantize_bf16;
  return nullptr;
}

}  // namespace

const PanelKind* find_panel(const char* name) { return find(kPanels, name); }
const StoredKind* find_stored(const char* name) { return find(kStored, name); }

const PanelKind& panel_kind(bool is_float, uint8_t format) {
  const PanelKind* kind = kPanels;
  while (kind->is_float != is_float || kind->format != format) ++kind;
  return *kind;
}

PanelShape panel_shape(const PanelKind& kind, size_t columns) {
  return {(columns + kind.columns - 1) / kind.columns, kind.bytes};
}

size_t row_bytes(const StoredKind& kind, size_t columns) {
  if (std::strcmp(kind.name, "INT4") == 0) return (columns + 7) / 8 * 4;  // words of 8 codes
  return columns % kind.values == 0 ? columns / kind.values * kind.bytes : 0;
}

bool can_pack(const StoredKind& from, const PanelKind& to) { return packer(from, to) != nullptr; }

void pack_panel(const StoredKind& from, const PanelKind& to, const uint8_t* rows, const uint16_t* scales,
                size_t row_count, size_t columns, uint8_t* panel) {
  const size_t bytes = row_bytes(from, columns), groups = (columns + kGroup - 1) / kGroup;
  std::vector<uint8_t> padded_rows;
  std::vector<uint16_t> padded_scales;
  if (row_count < kPanelRows) {
    padded_rows.resize(kPanelRows * bytes);
    std::memcpy(padded_rows.data(), rows, row_count * bytes);
    rows = padded_rows.data();
    if (scales) {
      padded_scales.resize(kPanelRows * groups);
      std::memcpy(padded_scales.data(), scales, row_count * groups * sizeof(uint16_t));
      scales = padded_scales.data();
    }
  }
  packer(from, to)({rows, bytes, scales, groups}, columns, panel);
}

}  // namespace moonlet
