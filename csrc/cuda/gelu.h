// GELU's CUDA kernels, with an optional bias added first: no torch header, raw pointers and a stream.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

// Contiguous arrays of `count` elements; with a bias, rows of `cols`.
struct GeluParams {
  DType dtype;
  bool tanh;  // approximate="tanh"
  int64_t count, cols;
  const void* input;
  const void* bias;         // (cols) or null
  const void* grad_output;  // backward only
  void* output;             // backward: grad_input
  // Backward with a bias: its gradient, and room for gelu_groups(params) x cols floats.
  void* grad_bias;
  float* partials;
};

// output = gelu(input + bias).
cudaError_t gelu_forward(const GeluParams& params, cudaStream_t stream);

// grad_input = grad_output gelu'(input + bias); grad_bias is its sum over rows.
cudaError_t gelu_backward(const GeluParams& params, cudaStream_t stream);
int64_t gelu_groups(const GeluParams& params);

}  // namespace fastllm::cuda
