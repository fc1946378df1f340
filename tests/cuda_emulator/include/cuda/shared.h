// Stands in for csrc/cuda/shared.h.
#pragma once

#include "cuda_runtime.h"

namespace fastllm::cuda {

template <typename T>
__device__ __forceinline__ T* shared_memory() {
  static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
  return static_cast<T*>(emulator::shared_memory(sizeof(T)));
}

}  // namespace fastllm::cuda
