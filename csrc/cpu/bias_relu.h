// ReLU (Nair & Hinton, 2010), with an optional bias added before and dropout after.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace fastllm {

// output = dropout(max(input + bias, 0)) for `count` elements, bias repeating every `cols`; bias and dropout may be
// null. Without a bias the last row may be cut short. A NaN stays one.
template <typename T>
void bias_relu_forward(int64_t count, int64_t cols, const T* input, const T* bias, const DropoutParams* dropout,
                       T* output);

// grad_input = scale * grad_output, but 0 where output <= 0: there the input was not above 0, or was dropped.
// grad_bias (cols), if not null, is its sum over rows.
template <typename T>
void bias_relu_backward(int64_t count, int64_t cols, const T* grad_output, const T* output, float scale, T* grad_input,
                        T* grad_bias);

}  // namespace fastllm
