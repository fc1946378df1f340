// CUDA kernels of layer_norm, rms_norm, dropout_add_layer_norm and dropout_add_rms_norm: no torch header, raw pointers
// and a stream.
#pragma once

#include <cstdint>

#include "cuda/column_sums.h"
#include "cuda/dropout.h"
#include "cuda/dtype.h"

namespace fastllm::cuda {

// Learned values, as many as a row has, of the rows' dtype or float32; null: none.
struct Parameter {
  const void* data = nullptr;
  bool is_float32 = false;
};

struct NormForwardParams {
  DType dtype;
  int64_t rows, cols;
  bool rms;  // no mean is subtracted, `mean` is not written
  float eps;
  const void* input;
  Parameter weight, bias;
  void* output;
  float* mean;
  float* rstd;
  // With these, what is normalised is new_residual = residual + dropout(input + input_bias).
  const void* residual = nullptr;
  Parameter input_bias;
  void* new_residual = nullptr;
  Dropout dropout;
};

struct NormBackwardParams {
  DType dtype;
  int64_t rows, cols;
  const void* grad_output;    // of the normalised rows; null: none came
  const void* grad_residual;  // added to the gradient of what was normalised; null: none came
  const void* normalized;     // what was normalised: the input, or new_residual
  const float* mean;          // null: RMS norm
  const float* rstd;
  Parameter weight;
  void* grad_normalized;
  // Where dropout was applied: grad_input = its mask times grad_normalized.
  Dropout dropout;
  void* grad_input = nullptr;
  // The parameters' gradients, those with an output, and room for what is needed on the way: norm_backward_room().
  ColumnSum grad_weight, grad_bias, grad_input_bias;
  float* row_means = nullptr;
};

cudaError_t norm_forward(const NormForwardParams& params, cudaStream_t stream);

// What norm_backward must be given; `partials` and `row_means` need not be there yet.
struct NormBackwardRoom {
  // Partial sums of each parameter. Their number depends on shapes, dtype and alignment alone, not on the device: the
  // order of a sum must not.
  int64_t groups;
  int64_t row_means;  // floats
};
NormBackwardRoom norm_backward_room(const NormBackwardParams& params);

cudaError_t norm_backward(const NormBackwardParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
