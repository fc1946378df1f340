// How a kernel is launched: launch<kernel<T, kWidth>>({grid, block, shared_bytes}, stream, arguments...).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace fastllm::cuda {

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic shared memory, all that kernels use: see shared.h
};

// Returns this launch's own error, not one that somebody left behind: nothing is cleared that others want to see.
template <auto kernel, typename... Args>
cudaError_t launch(const Launch& how, cudaStream_t stream, Args... args) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (how.shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace fastllm::cuda
