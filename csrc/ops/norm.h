// The checks of layer_norm, rms_norm, dropout_add_layer_norm, dropout_add_rms_norm and of their backward, the same for
// every device.
#pragma once

#include <limits>

#include "ops/op.h"

namespace fastllm {

// Each of `rows` is normalised over its `cols` elements.
struct NormShape {
  int64_t rows, cols;
};

// What rms_norm adds to the mean square unless told: the machine epsilon of what that is computed in, as torch does.
inline double rms_norm_eps(std::optional<double> eps, const Tensor& input) {
  if (eps) return *eps;
  return compute_type(input) == at::kDouble ? std::numeric_limits<double>::epsilon()
                                            : std::numeric_limits<float>::epsilon();
}

// Parameters may be of any floating dtype beside the input's: float32 ones with bfloat16 activations are common.
inline void check_norm_parameter(const char* op, const char* name, const OptionalTensor& parameter,
                                 at::IntArrayRef shape, const Tensor& input) {
  if (!parameter) return;
  check_floating(op, name, *parameter);
  check_same_device(op, name, *parameter, "input", input);
  check_shape(op, name, *parameter, shape);
}

inline NormShape check_norm(const char* op, const Tensor& input, at::IntArrayRef normalized_shape,
                            const OptionalTensor& weight, const OptionalTensor& bias) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(!normalized_shape.empty(), op, "normalized_shape", "have at least one dimension", "none");
  const int64_t outer = input.dim() - static_cast<int64_t>(normalized_shape.size());
  const bool fits = outer >= 0 && input.sizes().slice(outer) == normalized_shape;
  FASTLLM_CHECK(fits, op, "normalized_shape", c10::str("be the last dimensions of 'input' (", input.sizes(), ")"),
                normalized_shape);
  check_norm_parameter(op, "weight", weight, normalized_shape, input);
  check_norm_parameter(op, "bias", bias, normalized_shape, input);
  return {c10::multiply_integers(input.sizes().slice(0, outer)), c10::multiply_integers(normalized_shape)};
}

inline NormShape check_dropout_add_norm(const char* op, const Tensor& input, const Tensor& residual,
                                        const OptionalTensor& weight, const OptionalTensor& bias,
                                        const OptionalTensor& input_bias) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
  check_same_shape(op, "residual", residual, "input", input);
  check_same_dtype(op, "residual", residual, "input", input);
  check_same_device(op, "residual", residual, "input", input);
  check_norm_parameter(op, "input_bias", input_bias, {input.size(-1)}, input);
  return check_norm(op, input, {input.size(-1)}, weight, bias);
}

inline NormShape check_norm_backward(const char* op, const OptionalTensor& grad_output,
                                     const OptionalTensor& grad_residual, const Tensor& normalized,
                                     const OptionalTensor& mean, const Tensor& rstd, const OptionalTensor& weight,
                                     const OptionalTensor& bias, const OptionalTensor& input_bias) {
  using Named = std::pair<const char*, const OptionalTensor*>;
  const OptionalTensor some_rstd = rstd;
  const Named parameters[] = {{"weight", &weight}, {"bias", &bias}, {"input_bias", &input_bias}};
  const Named statistics[] = {{"mean", &mean}, {"rstd", &some_rstd}};
  const Named gradients[] = {{"grad_output", &grad_output}, {"grad_residual", &grad_residual}};

  check_floating(op, "normalized", normalized);
  const at::ScalarType computing = compute_type(normalized);
  const int64_t rows = rstd.numel();
  int64_t cols = rows ? normalized.numel() / rows : 0;
  FASTLLM_CHECK(rows * cols == normalized.numel(), op, "rstd", "have an element for each row of 'normalized'", rows);
  for (const auto& [name, statistic] : statistics) {
    if (!*statistic) continue;
    check_same_device(op, name, **statistic, "normalized", normalized);
    check_shape(op, name, **statistic, {rows});
    FASTLLM_CHECK_TYPE((*statistic)->scalar_type() == computing, op, name, c10::str("be ", computing),
                       (*statistic)->scalar_type());
  }
  for (const auto& [name, parameter] : parameters) {
    if (!*parameter) continue;
    const int64_t size = (*parameter)->numel();
    if (rows == 0) cols = size;
    check_same_device(op, name, **parameter, "normalized", normalized);
    FASTLLM_CHECK(size == cols, op, name, c10::str("have ", cols, " elements"), size);
  }
  for (const auto& [name, gradient] : gradients) {
    if (!*gradient) continue;
    check_same_device(op, name, **gradient, "normalized", normalized);
    check_same_shape(op, name, **gradient, "normalized", normalized);
  }
  return {rows, cols};
}

}  // namespace fastllm
