// Layer norm (Ba et al., 2016) and RMS norm (Zhang & Sennrich, 2019) over rows, optionally of residual + dropout(input
// + input_bias) made in the same pass. Serves layer_norm, rms_norm, dropout_add_layer_norm and dropout_add_rms_norm.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "cpu/simd.h"

namespace fastllm {

template <typename T>
struct NormForward {
  using C = Compute<T>;
  int64_t rows, cols;
  bool rms;  // no mean is subtracted, `mean` is not written
  double eps;
  const T* input;
  const C* weight;  // cols, or null
  const C* bias;    // cols, or null
  T* output;
  C* mean;
  C* rstd;
  // With these, what is normalised is new_residual = residual + dropout(input + input_bias).
  const T* residual = nullptr;
  const T* input_bias = nullptr;
  T* new_residual = nullptr;
  const DropoutParams* dropout = nullptr;
};

template <typename T>
struct NormBackward {
  using C = Compute<T>;
  int64_t rows, cols;
  bool rms;
  const T* grad_output;    // of the normalised rows; null: none came
  const T* grad_residual;  // added to the gradient of what was normalised; null: none came
  const T* normalized;     // what was normalised: the input, or new_residual
  const C* mean;
  const C* rstd;
  const C* weight;
  T* grad_normalized;
  C* grad_weight;  // null: not wanted
  C* grad_bias;    // null: not wanted
  // Where dropout was applied: grad_input = its mask times grad_normalized.
  const DropoutParams* dropout = nullptr;
  T* grad_input = nullptr;
  C* grad_input_bias = nullptr;
};

template <typename T>
void norm_forward(const NormForward<T>& args);

template <typename T>
void norm_backward(const NormBackward<T>& args);

}  // namespace fastllm
