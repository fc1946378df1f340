// Dropout's CUDA kernels, with an optional bias added before and residual added after.
#pragma once

#include <cstdint>

#include "cuda/dropout.h"
#include "cuda/dtype.h"

namespace fastllm::cuda {

// output = residual + dropout(input + bias) on contiguous arrays of `count` elements; residual and bias may be null.
// Backward is the same without both: grad_input is dropout(grad_output) by the same mask.
struct DropoutAddParams {
  DType dtype;
  Dropout dropout;
  int64_t count, cols;  // cols: of a row, where bias or grad_bias is given
  const void* input;
  const void* bias;
  const void* residual;
  void* output;
  // Backward with a bias: the sum of output over rows, and room for dropout_add_groups(params) x cols floats.
  void* grad_bias;
  float* partials;
};

cudaError_t dropout_add(const DropoutAddParams& params, cudaStream_t stream);
int64_t dropout_add_groups(const DropoutAddParams& params);

}  // namespace fastllm::cuda
