// y += a x, element by element.
#include "emulator/sample.h"

__global__ void saxpy(float a, const float* x, float* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i] += a * x[i];
}

SAMPLE(saxpy);
