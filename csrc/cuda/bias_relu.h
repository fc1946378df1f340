// ReLU's CUDA kernels, with an optional bias added before and dropout after.
#pragma once

#include <cstdint>

#include "cuda/dropout.h"
#include "cuda/dtype.h"

namespace fastllm::cuda {

// Contiguous arrays of `count` elements; with a bias, rows of `cols`.
struct BiasReluParams {
  DType dtype;
  int64_t count, cols;
  Dropout dropout;
  const void* input;
  const void* bias;  // (cols) or null
  void* output;
};

// output = dropout(max(input + bias, 0)); a NaN stays one.
cudaError_t bias_relu_forward(const BiasReluParams& params, cudaStream_t stream);

struct BiasReluBackwardParams {
  DType dtype;
  int64_t count, cols;
  float scale;  // dropout's
  const void* grad_output;
  const void* output;
  void* grad_input;
  // With a bias: its gradient, and room for bias_relu_groups(params) x cols floats.
  void* grad_bias;
  float* partials;
};

// grad_input = scale grad_output, but 0 where output <= 0; grad_bias is its sum over rows.
cudaError_t bias_relu_backward(const BiasReluBackwardParams& params, cudaStream_t stream);
int64_t bias_relu_groups(const BiasReluBackwardParams& params);

}  // namespace fastllm::cuda
