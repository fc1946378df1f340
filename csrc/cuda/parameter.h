// Learned parameters beside rows: of the rows' dtype, or float32 with rows of a narrower one.
#pragma once

#include "cuda/packed.h"

namespace fastllm::cuda {

// As many values as a row has; null: none.
struct Parameter {
  const void* data = nullptr;
  bool is_float32 = false;
};

// Values [column, column + kWidth). Cached: every row needs them.
template <typename T, int kWidth>
__device__ __forceinline__ void load_parameter(const Parameter& parameter, int64_t column, float (&value)[kWidth]) {
  if (parameter.is_float32) {
    constexpr int kStep = kWidth < kWidest<float> ? kWidth : kWidest<float>;
    Pack<float, kStep> pack;
    const float* from = static_cast<const float*>(parameter.data) + column;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i % kStep == 0) pack = load<float, kStep>(from + i);
      value[i] = pack.value[i % kStep];
    }
  } else {
    Packed<T, kWidth>::load(static_cast<const T*>(parameter.data) + column).unpack(value);
  }
}

}  // namespace fastllm::cuda
