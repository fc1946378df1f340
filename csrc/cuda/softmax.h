// CUDA kernels of softmax: no torch header, raw pointers and a stream.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

// What a piece of a row comes to: its maximum, and the sum of its exponentials against that.
struct SoftmaxPiece {
  float maximum, sum;
};

// Over the middle dimension of contiguous (outer, size, inner). Forward: output = softmax(input). Backward: `input` is
// the softmax, and output its gradient input (grad_output - sum grad_output input).
struct SoftmaxParams {
  DType dtype;
  int64_t outer, size, inner;
  const void* input;
  const void* grad_output;  // backward only
  void* output;
  SoftmaxPiece* pieces = nullptr;  // forward only: room for softmax_pieces(params) of them
};

// How many pieces forward takes rows in; 0 where each stays whole.
int64_t softmax_pieces(const SoftmaxParams& params);

cudaError_t softmax_forward(const SoftmaxParams& params, cudaStream_t stream);
cudaError_t softmax_backward(const SoftmaxParams& params, cudaStream_t stream);

// The same where inner > 1, and where rows are taken in pieces; called by those above.
cudaError_t strided_softmax_forward(const SoftmaxParams& params, cudaStream_t stream);
cudaError_t strided_softmax_backward(const SoftmaxParams& params, cudaStream_t stream);
cudaError_t split_softmax_forward(const SoftmaxParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
