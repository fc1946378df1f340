// Rotary position embedding's CUDA kernel.
#pragma once

#include "common/rotary.h"
#include "cuda/dtype.h"

namespace fastllm::cuda {

struct RotaryParams {
  DType dtype;
  Rotary rotary;  // positions outside of the tables give NaN
  const void* input;
  const float *cos, *sin;
  void* output;
};

cudaError_t rotary_embedding(const RotaryParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
