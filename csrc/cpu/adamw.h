// AdamW (Loshchilov & Hutter, 2019) over many tensors at once, with clipping by the global norm.
#pragma once

#include <cstdint>
#include <vector>

namespace fastllm {

template <typename T>
struct AdamWTensor {
  int64_t count;
  T* parameter;
  const T* gradient;
  T* exp_avg;
  T* exp_avg_sq;
  double step;  // from 1
};

struct AdamWOptions {
  double learning_rate, beta1, beta2, eps, weight_decay;
  bool maximize;
  double gradient_scale;  // what gradients are multiplied by first
};

// The sum of squares of all gradients, summed in one fixed order.
template <typename T>
double sum_of_squares(const std::vector<AdamWTensor<T>>& tensors);

template <typename T>
void adamw_update(const std::vector<AdamWTensor<T>>& tensors, const AdamWOptions& options);

}  // namespace fastllm
