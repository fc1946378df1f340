// What linear_cross_entropy checks on every device, and the dtypes of what it returns.
#pragma once

#include "ops/loss.h"

namespace fastllm {

// N rows, C channels, V classes

// Which gradients are made: the weight's is as large as the weight and costs a third of all products.
struct Wanted {
  bool input, weight, bias;
};

inline void check_linear_cross_entropy(const char* op, const Tensor& input, const Tensor& weight, const Tensor& target,
                                       const OptionalTensor& bias, const LossOptions& options) {
  options.check(op);
  check_floating(op, "input", input);
  FASTLLM_CHECK(input.dim() == 2, op, "input", "have shape (rows, channels)", input.sizes());
  FASTLLM_CHECK(weight.dim() == 2 && weight.size(1) == input.size(1) && weight.size(0) > 0, op, "linear_weight",
                c10::str("have shape (classes, ", input.size(1), ")"), weight.sizes());
  check_same_device(op, "linear_weight", weight, "input", input);
  check_same_dtype(op, "linear_weight", weight, "input", input);
  check_target_dtype(op, target);
  check_same_device(op, "target", target, "input", input);
  check_shape(op, "target", target, {input.size(0)});
  if (bias) {
    check_same_device(op, "linear_bias", *bias, "input", input);
    check_same_dtype(op, "linear_bias", *bias, "input", input);
    check_shape(op, "linear_bias", *bias, {weight.size(0)});
  }
}

inline void check_row_gradients(const char* op, const Tensor& grad_output, const Tensor& target) {
  check_same_shape(op, "grad_output", grad_output, "target", target);
  check_same_device(op, "grad_output", grad_output, "target", target);
}

// Of the gradients that wait for backward. float16's are float32 in any case: a mean over many rows lies below what
// float16 can hold, and the loss scale that lifts it comes in backward.
inline at::ScalarType kept_type(const Tensor& input, bool wide_loss) {
  return input.scalar_type() == at::kHalf ? at::kFloat : loss_type(input, wide_loss);
}

}  // namespace fastllm
