// SwiGLU (Shazeer, "GLU variants improve Transformer", 2020): silu(gate) * up.
#pragma once

#include <cstdint>

namespace fastllm {

// Matrices of (rows, cols). Rows of gate and up begin a stride after each other, so that both may be halves of one
// tensor or parts of larger ones; output and its gradient are contiguous.
template <typename T>
struct Swiglu {
  int64_t rows, cols;
  const T *gate, *up;
  int64_t gate_stride, up_stride;
};

// output = gate * sigmoid(gate) * up.
template <typename T>
void swiglu_forward(const Swiglu<T>& in, T* output);

// The gradients of gate and up, whose rows begin grad_stride after each other.
template <typename T>
void swiglu_backward(const Swiglu<T>& in, const T* grad_output, T* grad_gate, T* grad_up, int64_t grad_stride);

}  // namespace fastllm
