// Conversions of bfloat16 and float16.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "emulator/sample.h"

template <typename T>
__global__ void convert(const float* from, T* narrow, float* back, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  narrow[i] = static_cast<T>(from[i]);
  back[i] = static_cast<float>(narrow[i]);
}
SAMPLE(convert<__nv_bfloat16>);
SAMPLE(convert<__half>);
