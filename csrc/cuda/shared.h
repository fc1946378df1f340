// A block's shared memory. A kernel declares a struct of what it shares and asks for a pointer to it; nothing is shared
// in another way, so that one place knows where shared memory begins and ends.
#pragma once

namespace fastllm::cuda {

template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char fastllm_shared_memory[];
  return reinterpret_cast<T*>(fastllm_shared_memory);
}

}  // namespace fastllm::cuda
