// What op files need to launch CUDA kernels; included only where the build has CUDA.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "common/cuda_dtype.h"
#include "ops/op.h"

namespace fastllm {

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
