// The checks of linear, the same for every device, and its backward on torch's products.
#pragma once

#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <vector>

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

// What is given says which gradients are wanted: the input gives the weight's, the weight the input's.
inline void check_linear_backward(const char* op, const Tensor& grad_output, const OptionalTensor& input,
                                  const OptionalTensor& weight) {
  check_floating(op, "grad_output", grad_output);
  FASTLLM_CHECK(grad_output.dim() >= 1, op, "grad_output", "have at least one dimension", "a scalar");
  if (input) {
    check_same_device(op, "input", *input, "grad_output", grad_output);
    check_same_dtype(op, "input", *input, "grad_output", grad_output);
    const int64_t rows = grad_output.dim() - 1;
    FASTLLM_CHECK(input->dim() == rows + 1 && input->sizes().slice(0, rows) == grad_output.sizes().slice(0, rows), op,
                  "input", c10::str("have the rows of 'grad_output' (", grad_output.sizes(), ")"), input->sizes());
  }
  if (weight) {
    check_same_device(op, "weight", *weight, "grad_output", grad_output);
    check_same_dtype(op, "weight", *weight, "grad_output", grad_output);
    FASTLLM_CHECK(weight->dim() == 2 && weight->size(0) == grad_output.size(-1), op, "weight",
                  c10::str("have shape (", grad_output.size(-1), ", in_features)"), weight->sizes());
  }
}

// `like` with `features` in the last dimension.
inline std::vector<int64_t> with_features(const Tensor& like, int64_t features) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape.back() = features;
  return shape;
}

inline std::tuple<Tensor, Tensor, Tensor> linear_backward_by_torch(const Tensor& grad_output,
                                                                   const OptionalTensor& input,
                                                                   const OptionalTensor& weight, bool need_bias) {
  const Tensor grad = flatten_rows(grad_output);  // (M, N)
  Tensor grad_input, grad_weight, grad_bias;
  if (weight) grad_input = at::mm(grad, *weight).view(with_features(grad_output, weight->size(1)));
  if (input) grad_weight = at::mm(grad.t(), flatten_rows(*input));
  if (need_bias) grad_bias = at::sum(grad, 0);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace fastllm
