// Cross-entropy of rows of logits with class indices, and its gradient. Shared by cross_entropy and
// linear_cross_entropy.
#pragma once

#include <cstdint>

#include "common/softmax_statistics.h"
#include "cpu/simd.h"

namespace fastllm {

template <typename T>
struct CrossEntropyRows {
  int64_t rows;
  int64_t classes;
  const T* logits;           // rows x classes
  const int64_t* target;     // rows; every one is ignore_index or in [0, classes)
  const Compute<T>* weight;  // classes, or null for all ones
  Compute<T> weight_sum;     // of all classes
  int64_t ignore_index;
  Compute<T> label_smoothing;  // spread over all classes, as torch does
};

// With l_c = log(sum_k exp(logits_k)) - logits_c, e = label_smoothing, V = classes and t the row's target:
//   loss = (1 - e) w_t l_t + e / V sum_c w_c l_c, and 0 where t is ignore_index.
template <typename T>
void cross_entropy_forward(const CrossEntropyRows<T>& input, Compute<T>* loss,
                           SoftmaxStatistics<Compute<T>>* statistics);

// grad_logits = grad_loss[row] * d loss[row] / d logits; 0 in ignored rows. grad_logits may be the logits themselves.
template <typename T>
void cross_entropy_backward(const CrossEntropyRows<T>& input, const SoftmaxStatistics<Compute<T>>* statistics,
                            const Compute<T>* grad_loss, T* grad_logits);

}  // namespace fastllm
