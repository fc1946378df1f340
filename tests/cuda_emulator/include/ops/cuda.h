// Stands in for csrc/ops/cuda.h: the "device" is the CPU, the stream is nobody's, and registrations are kept for
// emulated.install().
#pragma once

#include "cuda/dtype.h"
#include "emulator/library.h"
#include "ops/op.h"

#define FASTLLM_CUDA_IMPL(m)                                                       \
  static void register_emulated(::emulator::Library& m);                           \
  static const ::emulator::Registration emulated_registration(&register_emulated); \
  static void register_emulated(::emulator::Library& m)

namespace fastllm {

struct CudaGuard {
  explicit CudaGuard(const Tensor&) {}
};

inline cudaStream_t current_stream() {
  return nullptr;
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
