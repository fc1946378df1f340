// Softmax over one dimension of (outer, size, inner).
#pragma once

#include <cstdint>

namespace fastllm {

template <typename T>
void softmax_forward(int64_t outer, int64_t size, int64_t inner, const T* input, T* output);

// grad_input = output (grad_output - sum grad_output output).
template <typename T>
void softmax_backward(int64_t outer, int64_t size, int64_t inner, const T* grad_output, const T* output, T* grad_input);

}  // namespace fastllm
