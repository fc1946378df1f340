// The checks of gelu and bias_gelu, the same for every device.
#pragma once

#include <algorithm>

#include "cpu/gelu.h"
#include "ops/op.h"

namespace fastllm {

inline GeluShape check_gelu(const char* op, const Tensor& input, const OptionalTensor& bias,
                            c10::string_view approximate) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(approximate == "none" || approximate == "tanh", op, "approximate", "be 'none' or 'tanh'", "'",
                approximate, "'");
  constexpr int64_t kAnyCols = 4096;
  if (!bias) return {input.numel(), kAnyCols, approximate == "tanh"};
  FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
  check_same_device(op, "bias", *bias, "input", input);
  check_same_dtype(op, "bias", *bias, "input", input);
  check_shape(op, "bias", *bias, {input.size(-1)});
  return {input.numel(), std::max<int64_t>(1, input.size(-1)), approximate == "tanh"};
}

inline GeluShape check_gelu_backward(const char* op, const Tensor& grad_output, const Tensor& input,
                                     const OptionalTensor& bias, c10::string_view approximate) {
  check_same_shape(op, "grad_output", grad_output, "input", input);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_same_device(op, "grad_output", grad_output, "input", input);
  return check_gelu(op, input, bias, approximate);
}

}  // namespace fastllm
