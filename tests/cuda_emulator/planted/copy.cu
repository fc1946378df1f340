#include "copy.h"

#include "cuda/launch.h"

namespace {

__global__ void copy_kernel(const float* from, float* to, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i];
}

}  // namespace

cudaError_t copy_floats(const float* from, float* to, int count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((count + 63) / 64));
  return fastllm::cuda::launch<copy_kernel>({grid, 64}, stream, from, to, count);
}
