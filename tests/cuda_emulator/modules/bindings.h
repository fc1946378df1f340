// What both Python modules have: the seed, the traffic, the class of errors. Knows nothing of torch.
#pragma once

#include <pybind11/pybind11.h>

namespace emulator {

void bind_runtime(pybind11::module_& m);

// The Python class of a kernel's faults, as given to set_error_class().
PyObject* error_class();

}  // namespace emulator
