// Stands in for csrc/cuda/launch.h.
#pragma once

#include <tuple>

#include "cuda_runtime.h"
#include "emulator/grid.h"

namespace fastllm::cuda {

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

template <auto kernel, typename... Args>
cudaError_t launch(const Launch& how, cudaStream_t stream, Args... args) {
  using Parameters = std::tuple<Args...>;
  const Parameters parameters(args...);
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (how.shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return emulator::run({emulator::kernel_name(__PRETTY_FUNCTION__), reinterpret_cast<const void*>(kernel), how.grid,
                        how.block, how.shared_bytes, &parameters, sizeof parameters,
                        [](const void* from) { std::apply(kernel, *static_cast<const Parameters*>(from)); }, stream});
}

}  // namespace fastllm::cuda
