// GELU (Hendrycks & Gimpel, 2016), exact and in the tanh form of GPT-2, with an optional bias added first.
#pragma once

#include <cstdint>

namespace fastllm {

struct GeluShape {
  int64_t rows;
  int64_t cols;  // the bias's length; rows are contiguous
  bool tanh;     // approximate="tanh"
};

// output[r][c] = gelu(input[r][c] + bias[c]); bias may be null.
template <typename T>
void gelu_forward(const GeluShape& shape, const T* input, const T* bias, T* output);

// grad_input = grad_output * gelu'(input + bias); grad_bias, if not null, its sum over rows.
template <typename T>
void gelu_backward(const GeluShape& shape, const T* grad_output, const T* input, const T* bias, T* grad_input,
                   T* grad_bias);

}  // namespace fastllm
