// How a kernel's mistake is told: one sentence with kernel, block and thread, thrown out of the launch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "emulator/device.h"
#include "vector_types.h"

namespace emulator {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Ends the launch: "<kernel>, block (x, y, z), thread (x, y, z): <what>". Called on a fiber it leaves that fiber and
// all others behind: nothing on their stacks needs a destructor, as device code has none.
[[noreturn]] void fault(const std::string& what);

std::string text(const Place& place);         // "norm.cu:31"
std::string text(const uint3& index);         // "(1, 0, 0)"
std::string text(uintptr_t program_counter);  // the source line that an instruction comes from

}  // namespace emulator
