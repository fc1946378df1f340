// The checks of dropout and dropout_add, the same for every device.
#pragma once

#include <algorithm>

#include "ops/dropout.h"

namespace fastllm {

// The length of a row: the bias's, or without one a run that is a multiple of 8, so that each starts a Philox block.
inline int64_t dropout_row_length(const Tensor& input, bool has_bias) {
  return has_bias ? std::max<int64_t>(1, input.size(-1)) : 4096;
}

inline void check_dropout_add(const char* op, const Tensor& input, const OptionalTensor& residual,
                              const OptionalTensor& bias) {
  check_floating(op, "input", input);
  if (residual) {
    check_same_shape(op, "residual", *residual, "input", input);
    check_same_dtype(op, "residual", *residual, "input", input);
    check_same_device(op, "residual", *residual, "input", input);
  }
  if (bias) {
    FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
    check_shape(op, "bias", *bias, {input.size(-1)});
    check_same_dtype(op, "bias", *bias, "input", input);
    check_same_device(op, "bias", *bias, "input", input);
  }
}

}  // namespace fastllm
