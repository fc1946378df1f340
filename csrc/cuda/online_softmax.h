// The maximum of a thread's values and the sum of their exponentials against it, in one pass (Milakov & Gimelshein,
// "Online normalizer calculation for softmax", 2018).
#pragma once

#include "cuda/reduce.h"

namespace fastllm::cuda {

struct OnlineSoftmax {
  float maximum = -INFINITY;

  // Gets ready for values of which `upper` is the largest; add() each of them then. They are summed by themselves: one
  // running sum of all would be off where there are many, as what is added is small beside it.
  __device__ __forceinline__ void raise(float upper) {
    const float raised = Max::of(maximum, upper);
    before_ += sum_;
    sum_ = 0.0f;
    // While all are -inf there is nothing to scale, and -inf - -inf would be NaN.
    if (raised != maximum) before_ *= expf(maximum - raised);
    maximum = raised;
  }

  // Adds exp(value - maximum), and returns it.
  __device__ __forceinline__ float add(float value) {
    const float exponential = value == -INFINITY ? 0.0f : expf(value - maximum);
    sum_ += exponential;
    return exponential;
  }

  __device__ __forceinline__ float sum() const { return before_ + sum_; }

 private:
  float before_ = 0.0f, sum_ = 0.0f;
};

}  // namespace fastllm::cuda
