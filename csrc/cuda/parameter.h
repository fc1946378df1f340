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
    load_floats(static_cast<const float*>(parameter.data) + column, value);
  } else {
    Packed<T, kWidth>::load(static_cast<const T*>(parameter.data) + column).unpack(value);
  }
}

}  // namespace fastllm::cuda
