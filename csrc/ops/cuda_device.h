// The device's side of an op's CUDA implementation: where it is registered, which device and stream it runs on. The
// emulator of the tests has a file of this name instead.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "ops/op.h"

// FASTLLM_CUDA_IMPL(m) { m.impl("gelu", gelu_cuda); }
#define FASTLLM_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(fastllm, CUDA, m)

namespace fastllm {

// While it lives, kernels go to the tensor's device. A tensor that is elsewhere is for the op's own checks to name.
struct CudaGuard {
  explicit CudaGuard(const Tensor& tensor) {
    if (tensor.is_cuda()) guard.set_device(tensor.device());
  }
  c10::cuda::OptionalCUDAGuard guard;
};

inline cudaStream_t current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

}  // namespace fastllm
