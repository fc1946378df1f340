// Cross-entropy's CUDA kernels: no torch header, raw pointers and a stream. Shared by cross_entropy and
// linear_cross_entropy.
#pragma once

#include <cstdint>

#include "common/softmax_statistics.h"
#include "cuda/dtype.h"

namespace fastllm::cuda {

// Rows of logits and their targets, unchecked: they are on the device, and asking for them would stall. A target that
// is neither a class nor ignore_index makes its row's loss and gradient NaN.
struct CrossEntropyRows {
  DType dtype;
  int64_t rows;
  int64_t classes;
  int64_t row_stride;  // of the logits and of their gradient, in elements
  const void* logits;
  const int64_t* target;
  const float* weight;      // classes, or null for all ones
  const float* weight_sum;  // of all classes; null where weight is
  int64_t ignore_index;
  float label_smoothing;  // spread over all classes, as torch does
};

// The gradient of each row's loss: *scale times loss[row], or loss[0] for all rows; null pointers are ones.
struct LossGradient {
  const float* loss = nullptr;
  bool one = false;
  const float* scale = nullptr;
};

// Loss and statistics of each row, all 0 where the target is ignored. With grad_logits, which may be the logits
// themselves, also the gradient in the same launch.
struct CrossEntropyForwardParams {
  CrossEntropyRows in;
  float* loss;                           // rows
  SoftmaxStatistics<float>* statistics;  // rows, or null
  LossGradient grad;                     // read only with grad_logits
  void* grad_logits;                     // or null
};
cudaError_t cross_entropy_forward(const CrossEntropyForwardParams& params, cudaStream_t stream);

// The gradient of the logits; 0 in ignored rows.
struct CrossEntropyBackwardParams {
  CrossEntropyRows in;
  const SoftmaxStatistics<float>* statistics;
  LossGradient grad;
  void* grad_logits;
};
cudaError_t cross_entropy_backward(const CrossEntropyBackwardParams& params, cudaStream_t stream);

// What a reduction needs: the sum of the losses, and for "mean" the weights of the targets that count.
constexpr int64_t kLossPiece = 4096;  // rows summed at a time, whatever the device

struct CrossEntropyReduceParams {
  int64_t rows;
  int64_t classes;
  const float* losses;  // or null, where the scale alone is wanted
  const int64_t* target;
  const float* weight;  // or null for all ones
  int64_t ignore_index;
  bool mean;
  float* partial;  // 2 a piece of kLossPiece rows
  float* loss;     // 1, or null with losses
  float* scale;    // 1: what the gradient of the sum is multiplied by; 1 / denominator, 0 where nothing counts
};
cudaError_t cross_entropy_reduce(const CrossEntropyReduceParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
