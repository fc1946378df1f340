// install(), uninstall() and calls() of a Python module whose ops run on the emulator.
#pragma once

#include <pybind11/pybind11.h>

namespace emulator {

// name_space: that of the ops in torch.
void bind_install(pybind11::module_& m, const char* name_space);

}  // namespace emulator
