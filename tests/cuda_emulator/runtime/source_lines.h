// From addresses of instructions to lines of source, through addr2line, which comes with every g++.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace emulator {

// For each return address the line of its call, outermost inlined caller last: "vector.h:41 in gelu.cu:83"; empty where
// it is not known.
std::vector<std::string> source_lines(const std::vector<uintptr_t>& return_addresses);

std::string_view file_name(std::string_view path);

}  // namespace emulator
