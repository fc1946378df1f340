// What the CUDA implementations of ops (ops/cuda) start from; compiled only where torch has CUDA and nvcc is there.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/dtype.h"
#include "ops/op.h"

// FASTLLM_CUDA_IMPL(m) { m.impl("gelu", gelu_cuda); }
#define FASTLLM_CUDA_IMPL(m) TORCH_LIBRARY_IMPL(fastllm, CUDA, m)

namespace fastllm {

// While it lives, kernels go to the tensor's device.
struct CudaGuard {
  explicit CudaGuard(const Tensor& tensor) : guard(tensor.device()) {}
  c10::cuda::CUDAGuard guard;
};

inline cudaStream_t current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

inline cuda::DType cuda_dtype(const char* op, const char* argument, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return cuda::DType::kFloat32;
    case at::kBFloat16:
      return cuda::DType::kBFloat16;
    case at::kHalf:
      return cuda::DType::kFloat16;
    default:
      FASTLLM_CHECK_TYPE(false, op, argument, "be float32, bfloat16 or float16 on CUDA", tensor.scalar_type());
  }
}

inline void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op, ": the CUDA kernel did not launch: ", cudaGetErrorString(error));
}

}  // namespace fastllm
