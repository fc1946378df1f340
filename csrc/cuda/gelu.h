// GELU's CUDA kernels: no torch header, raw pointers and a stream.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

// output[i] = gelu(input[i]), or grad_input[i] = grad_output[i] gelu'(input[i]); arrays of `count`, contiguous.
struct GeluParams {
  DType dtype;
  bool tanh;  // approximate="tanh"
  int64_t count;
  const void* input;
  const void* grad_output;  // backward only
  void* output;             // backward: grad_input
};

cudaError_t gelu_forward(const GeluParams& params, cudaStream_t stream);
cudaError_t gelu_backward(const GeluParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
