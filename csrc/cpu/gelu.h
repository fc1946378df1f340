// GELU (Hendrycks & Gimpel, 2016), exact and in the tanh form of GPT-2, with an optional bias added first.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastllm {

// `count` contiguous elements, seen as rows of `cols`: the bias's length, or without a bias any length that work can be
// cut by, and then the last row may be shorter.
struct GeluShape {
  int64_t count;
  int64_t cols;  // > 0
  bool tanh;     // approximate="tanh"

  int64_t rows() const { return (count + cols - 1) / cols; }
  int64_t width(int64_t row) const { return std::min(cols, count - row * cols); }
};

// output[r][c] = gelu(input[r][c] + bias[c]); bias may be null.
template <typename T>
void gelu_forward(const GeluShape& shape, const T* input, const T* bias, T* output);

// grad_input = grad_output * gelu'(input + bias); grad_bias, if not null, its sum over rows.
template <typename T>
void gelu_backward(const GeluShape& shape, const T* grad_output, const T* input, const T* bias, T* grad_input,
                   T* grad_bias);

}  // namespace fastllm
