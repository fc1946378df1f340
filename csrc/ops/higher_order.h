// Gradients whose own gradients are wanted: where backward runs with grad mode on (create_graph=True), ops whose
// formula is short take it from here, in torch's differentiable operators. All other gradients are the kernels'.
#pragma once

#include <ATen/ops/sum.h>

#include <vector>

#include "ops/op.h"

namespace fastllm {

inline bool higher_order() {
  return at::GradMode::is_enabled();
}

// Formulas compute in the type that kernels compute in.
inline Tensor computed(const Tensor& t) {
  return t.to(compute_type(t));
}

// (*, C) -> (rows, C)
inline Tensor as_rows(const Tensor& t) {
  return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2);
}

// The sum over all dimensions but the last `dims`: the gradient of what was repeated along them.
inline Tensor sum_leading(const Tensor& t, int64_t dims = 1) {
  std::vector<int64_t> leading;
  for (int64_t dim = 0; dim < t.dim() - dims; ++dim) leading.push_back(dim);
  return leading.empty() ? t : t.sum(leading);
}

}  // namespace fastllm
