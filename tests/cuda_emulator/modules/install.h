// install(), uninstall() and calls() of a Python module whose ops run on the emulator.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>

namespace emulator {

// name_space: that of the ops in torch.
void bind_install(pybind11::module_& m, const char* name_space);

// torch warns of kernels that replace others, which is what is wanted here.
void without_warnings(const std::function<void()>& body);

}  // namespace emulator
