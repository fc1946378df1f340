// SwiGLU's CUDA kernels.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

// Matrices of (rows, cols). Rows of gate and up begin a stride after each other; output and grad_output are contiguous.
struct SwigluParams {
  DType dtype;
  int64_t rows, cols;
  const void *gate, *up;
  int64_t gate_stride, up_stride;
  void* output;  // forward
  // Backward; the gradients' rows begin grad_stride after each other.
  const void* grad_output;
  void *grad_gate, *grad_up;
  int64_t grad_stride;
};

cudaError_t swiglu_forward(const SwigluParams& params, cudaStream_t stream);
cudaError_t swiglu_backward(const SwigluParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
