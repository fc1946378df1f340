// What the CUDA implementations of ops (ops/cuda) start from; compiled only where torch has CUDA and nvcc is there.
#pragma once

#include "cuda/dtype.h"
#include "ops/cuda_device.h"
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
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or torch's next check would find it, and raise it for another op
  const bool no_code = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  TORCH_CHECK(!no_code, op,
              ": this build of fastllm has no code for this GPU; build it again on this machine, or name "
              "the GPU's compute capability: FASTLLM_CUDA_ARCHS=\"80 90\"");
  TORCH_CHECK(false, op, ": the CUDA kernel did not launch: ", cudaGetErrorString(error));
}

}  // namespace fastllm
