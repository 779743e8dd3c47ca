#pragma once

#include <string_view>
#include <vector>

namespace moonlet {

// Names of the instruction sets that kernels may be written for and that this CPU and its operating system
// can run, narrowest first. "baseline" is plain C++ for the platform and always there.
std::vector<std::string_view> supported_isas();

}  // namespace moonlet
