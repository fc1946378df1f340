// The checks of linear, the same for every device, and its backward on torch's products.
#pragma once

#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "ops/matrix.h"
#include "ops/op.h"

namespace fastllm {

// M rows of input, K input features, N output features

inline void check_linear(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
  FASTLLM_CHECK(weight.dim() == 2, op, "weight", "have shape (out_features, in_features)", weight.sizes());
  check_same_device(op, "weight", weight, "input", input);
  check_same_dtype(op, "weight", weight, "input", input);
  FASTLLM_CHECK(weight.size(1) == input.size(-1), op, "weight",
                c10::str("have ", input.size(-1), " columns, the size of input's last dimension"), weight.sizes());
  if (!bias) return;
  check_same_device(op, "bias", *bias, "input", input);
  check_same_dtype(op, "bias", *bias, "input", input);
  check_shape(op, "bias", *bias, {weight.size(0)});
}

inline void check_linear_backward(const char* op, const Tensor& grad_output, const Tensor& input,
                                  const Tensor& weight) {
  check_linear(op, input, weight, std::nullopt);
  check_same_device(op, "grad_output", grad_output, "input", input);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
}

inline std::tuple<Tensor, Tensor, Tensor> linear_backward_by_torch(const Tensor& grad_output, const Tensor& input,
                                                                   const Tensor& weight, bool need_input,
                                                                   bool need_weight, bool need_bias) {
  const Tensor grad = flatten_rows(grad_output);  // (M, N)
  Tensor grad_input, grad_weight, grad_bias;
  if (need_input) grad_input = at::mm(grad, weight).view(input.sizes());
  if (need_weight) grad_weight = at::mm(grad.t(), flatten_rows(input));
  if (need_bias) grad_bias = at::sum(grad, 0);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace fastllm
