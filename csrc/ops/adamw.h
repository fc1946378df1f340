// The checks of grad_norm and adamw_, the same for every device.
#pragma once

#include <utility>

#include "ops/op.h"

namespace fastllm {

inline void check_optimized(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  FASTLLM_CHECK_TYPE(
      t.scalar_type() == like.scalar_type() && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble), op,
      argument, "be float32 or float64, all alike", t.scalar_type());
  check_same_device(op, argument, t, "parameters", like);
  check_same_shape(op, argument, t, "parameters", like);
  FASTLLM_CHECK(t.is_contiguous(), op, argument, "be contiguous", c10::str("strides ", t.strides()));
}

inline void check_scalar(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  const at::ScalarType dtype = t.scalar_type();
  FASTLLM_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, op, argument, "be float32 or float64", dtype);
  check_same_device(op, argument, t, "parameters", like);
  check_shape(op, argument, t, {});
}

inline void check_gradients(const char* op, at::TensorList gradients) {
  FASTLLM_CHECK(!gradients.empty(), op, "gradients", "be at least one tensor", "none");
  for (const Tensor& g : gradients) {
    check_optimized(op, "gradients", g, g);
    check_same_device(op, "gradients", g, "gradients", gradients[0]);
  }
}

inline void check_adamw(const char* op, at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                        at::TensorList exp_avg_sqs, at::TensorList steps, const OptionalTensor& lr_tensor,
                        const OptionalTensor& grad_norm) {
  const std::pair<const char*, size_t> lists[] = {{"gradients", gradients.size()},
                                                  {"exp_avgs", exp_avgs.size()},
                                                  {"exp_avg_sqs", exp_avg_sqs.size()},
                                                  {"steps", steps.size()}};
  for (const auto& [name, size] : lists)
    FASTLLM_CHECK(size == parameters.size(), op, name, c10::str("be ", parameters.size(), " tensors, as parameters"),
                  size);
  for (size_t i = 0; i < parameters.size(); ++i) {
    check_optimized(op, "parameters", parameters[i], parameters[i]);
    check_same_device(op, "parameters", parameters[i], "parameters", parameters[0]);
    check_optimized(op, "gradients", gradients[i], parameters[i]);
    check_optimized(op, "exp_avgs", exp_avgs[i], parameters[i]);
    check_optimized(op, "exp_avg_sqs", exp_avg_sqs[i], parameters[i]);
    check_scalar(op, "steps", steps[i], parameters[i]);
  }
  if (parameters.empty()) return;
  if (lr_tensor) check_scalar(op, "lr_tensor", *lr_tensor, parameters[0]);
  if (grad_norm) check_scalar(op, "grad_norm", *grad_norm, parameters[0]);
}

}  // namespace fastllm
