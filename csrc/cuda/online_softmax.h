// The maximum of a thread's values and the sum of their exponentials against it, in one pass (Milakov & Gimelshein,
// "Online normalizer calculation for softmax", 2018).
#pragma once

#include "cuda/reduce.h"

namespace fastllm::cuda {

struct OnlineSoftmax {
  float maximum = -INFINITY, sum = 0.0f;

  // Gets ready for values of which `upper` is the largest; add() each of them then.
  __device__ __forceinline__ void raise(float upper) {
    const float raised = Max::of(maximum, upper);
    // While all are -inf there is nothing to scale, and -inf - -inf would be NaN.
    if (raised != maximum) sum *= expf(maximum - raised);
    maximum = raised;
  }

  // Adds exp(value - maximum), and returns it.
  __device__ __forceinline__ float add(float value) {
    const float exponential = value == -INFINITY ? 0.0f : expf(value - maximum);
    sum += exponential;
    return exponential;
  }
};

}  // namespace fastllm::cuda
