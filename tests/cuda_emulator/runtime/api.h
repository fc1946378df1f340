// The host's state behind the runtime's API.
#pragma once

#include <cstddef>

#include "cuda_runtime_api.h"

namespace emulator {

cudaError_t set_last_error(cudaError_t error);  // and returns it
size_t max_shared_bytes(const void* kernel);    // 48 KiB, or what cudaFuncSetAttribute allowed

}  // namespace emulator
