// From a dtype known at run time to a C++ type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/dtype.h"

namespace fastllm::cuda {

template <typename T>
struct Type {
  using type = T;
};

// Calls body(Type<T>()) with T the C++ type of dtype; body returns a cudaError_t.
template <typename Body>
cudaError_t dispatch(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Type<float>());
    case DType::kBFloat16:
      return body(Type<__nv_bfloat16>());
    case DType::kFloat16:
      return body(Type<__half>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastllm::cuda
