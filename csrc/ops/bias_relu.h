// The checks of bias_relu, the same for every device.
#pragma once

#include "ops/dropout_add.h"

namespace fastllm {

inline void check_bias_relu(const char* op, const Tensor& input, const OptionalTensor& bias) {
  check_dropout_add(op, input, std::nullopt, bias);
}

inline void check_bias_relu_backward(const char* op, const Tensor& grad_output, const Tensor& output, double p,
                                     bool need_bias) {
  check_floating(op, "grad_output", grad_output);
  FASTLLM_CHECK(p >= 0.0 && p <= 1.0, op, "p", "be in [0, 1]", p);
  FASTLLM_CHECK(!need_bias || output.dim() >= 1, op, "output", "have at least one dimension", "a scalar");
  check_same_shape(op, "output", output, "grad_output", grad_output);
  check_same_dtype(op, "output", output, "grad_output", grad_output);
  check_same_device(op, "output", output, "grad_output", grad_output);
}

}  // namespace fastllm
