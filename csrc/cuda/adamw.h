// AdamW's CUDA kernels over many tensors at once: no torch header, raw pointers and a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace fastllm::cuda {

struct Gradient {
  int64_t count;
  const float* data;
};

// How many partial sums grad_norm needs room for: one a chunk of a tensor.
int64_t grad_norm_partials(const std::vector<Gradient>& gradients);

// *norm = the root of the sum of all squares, summed in an order that depends on the tensors' sizes alone.
cudaError_t grad_norm(const std::vector<Gradient>& gradients, float* partial, double* norm, cudaStream_t stream);

struct AdamWTensor {
  int64_t count;
  float* parameter;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  float* step;  // counts this step too, once the launch has run
};

// What changes from step to step lies on the device, so that a captured graph can be replayed.
struct AdamWOptions {
  float learning_rate;
  const float* learning_rate_tensor;  // where not null, instead
  float weight_decay;
  float beta1, beta2, eps;
  float rest1, rest2;          // 1 - beta, rounded once
  float log_beta1, log_beta2;  // for 1 - beta^step without cancellation
  bool maximize;
  const double* grad_norm;  // where not null, gradients are scaled so that it is at most max_norm
  float max_norm;
};

cudaError_t adamw(const std::vector<AdamWTensor>& tensors, const AdamWOptions& options, cudaStream_t stream);

}  // namespace fastllm::cuda
