// Learned parameters as kernels over rows read them.
#pragma once

#include "cuda/norm.h"
#include "cuda/packed.h"

namespace fastllm::cuda {

// Values [column, column + kWidth). Cached: every row needs them.
template <typename T, int kWidth>
__device__ __forceinline__ void load_parameter(const Parameter& parameter, int64_t column, float (&value)[kWidth]) {
  if (parameter.is_float32) {
    load_floats(static_cast<const float*>(parameter.data) + column, value);
  } else {
    Packed<T, kWidth>::load(static_cast<const T*>(parameter.data) + column).unpack(value);
  }
}

}  // namespace fastllm::cuda
