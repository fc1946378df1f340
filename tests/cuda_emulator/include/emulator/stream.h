// The stream that torch would give an op: that of the current device.
#pragma once

#include <cuda_runtime_api.h>

namespace emulator {

cudaStream_t current_stream();

}  // namespace emulator
