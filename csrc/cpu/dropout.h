// Dropout (Srivastava et al., 2014), with an optional bias added before and residual added after.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace fastllm {

// output = residual + dropout(input + bias) for `count` elements, bias repeating every `cols`; residual, bias and
// dropout may be null. Without a bias the last row may be cut short.
template <typename T>
void dropout_add_forward(int64_t count, int64_t cols, const T* input, const T* residual, const T* bias,
                         const DropoutParams* dropout, T* output);

// grad_input = mask * grad_output; grad_bias (cols), if not null, its sum over rows.
template <typename T>
void dropout_add_backward(int64_t count, int64_t cols, const T* grad_output, const DropoutParams* dropout,
                          T* grad_input, T* grad_bias);

}  // namespace fastllm
