// What cross_entropy checks and prepares on every device. Targets are looked at by the CPU alone: see
// ops/cuda/cross_entropy.cpp.
#pragma once

#include <vector>

#include "ops/loss.h"

namespace fastllm {

// N rows, V classes

// The input as a matrix of logits, whatever its layout: (V,), (N, V) or (N, V, d1, ..).
struct Logits {
  Tensor matrix;  // (rows, V), contiguous
  Tensor target;  // (rows,), contiguous
  Tensor weight;  // (V,) in the compute type, or undefined
};

inline Logits check_cross_entropy(const char* op, const Tensor& input, const Tensor& target,
                                  const OptionalTensor& weight, const LossOptions& options) {
  options.check(op);
  check_floating(op, "input", input);
  FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
  check_target_dtype(op, target);
  check_same_device(op, "target", target, "input", input);
  const int64_t class_dim = input.dim() == 1 ? 0 : 1;
  const int64_t classes = input.size(class_dim);
  std::vector<int64_t> expected = input.sizes().vec();
  expected.erase(expected.begin() + class_dim);
  check_shape(op, "target", target, expected);
  FASTLLM_CHECK(classes > 0, op, "input", "have at least one class", input.sizes());
  Logits logits;
  logits.matrix = input.movedim(class_dim, -1).reshape({target.numel(), classes}).contiguous();
  logits.target = target.reshape({-1}).contiguous();
  if (weight) {
    check_same_device(op, "weight", *weight, "input", input);
    check_floating(op, "weight", *weight);
    check_shape(op, "weight", *weight, {classes});
    logits.weight = weight->to(compute_type(input)).contiguous();
  }
  return logits;
}

inline at::IntArrayRef loss_shape(const Tensor& target, const LossOptions& options) {
  return options.reduction == "none" ? target.sizes() : at::IntArrayRef();
}

inline void check_cross_entropy_gradient(const char* op, const Tensor& grad_output, const Tensor& target,
                                         const Tensor& statistics, const LossOptions& options) {
  check_shape(op, "grad_output", grad_output, loss_shape(target, options));
  check_shape(op, "statistics", statistics, {target.numel(), 2});
}

// The gradient of Logits::matrix in the layout of the input.
inline Tensor as_input(const Tensor& grad_matrix, const Tensor& input, const Tensor& target) {
  if (input.dim() <= 2) return grad_matrix.view(input.sizes());
  std::vector<int64_t> classes_last = target.sizes().vec();
  classes_last.push_back(input.size(1));
  return grad_matrix.view(classes_last).movedim(-1, 1).contiguous();
}

}  // namespace fastllm
