// The checks of softmax and its backward, the same for every device.
#pragma once

#include <algorithm>

#include "ops/op.h"

namespace fastllm {

// The softmax is over the middle dimension.
struct SoftmaxShape {
  int64_t outer, size, inner;
};

inline SoftmaxShape check_softmax(const char* op, const Tensor& input, int64_t dim) {
  check_floating(op, "input", input);
  const int64_t dims = std::max<int64_t>(1, input.dim());
  FASTLLM_CHECK(dim >= -dims && dim < dims, op, "dim", c10::str("be in [", -dims, ", ", dims, ")"), dim);
  if (input.dim() == 0) return {1, 1, 1};
  const int64_t at = dim < 0 ? dim + dims : dim;
  return {c10::multiply_integers(input.sizes().slice(0, at)), input.size(at),
          c10::multiply_integers(input.sizes().slice(at + 1))};
}

inline SoftmaxShape check_softmax_backward(const char* op, const Tensor& grad_output, const Tensor& output,
                                           int64_t dim) {
  check_same_shape(op, "grad_output", grad_output, "output", output);
  check_same_dtype(op, "grad_output", grad_output, "output", output);
  check_same_device(op, "grad_output", grad_output, "output", output);
  return check_softmax(op, output, dim);
}

}  // namespace fastllm
