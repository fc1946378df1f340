// CUDA devices of torch whose memory is the process's own: torch.empty(2, device="cuda:1") works, torch's operators
// run there as the CPU's do, and the ops that are installed run on the emulator.
#pragma once

#include <pybind11/pybind11.h>

namespace emulator {

// name_space: that of the ops in torch.
void bind_torch_device(pybind11::module_& m, const char* name_space);

}  // namespace emulator
