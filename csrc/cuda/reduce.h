// Sums and maxima over a warp and over a block, in a fixed order: the same bits every time, in every thread.
#pragma once

#include <cuda_runtime.h>

namespace fastllm::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Sum {
  static constexpr float kIdentity = 0.0f;
  __device__ __forceinline__ static float of(float a, float b) { return a + b; }
};

struct Max {
  static constexpr float kIdentity = -INFINITY;
  // Unlike fmaxf, keeps a NaN.
  __device__ __forceinline__ static float of(float a, float b) { return a > b || a != a ? a : b; }
};

// Over kLanes neighbouring lanes (a power of two); each of them gets the result. All lanes of the warp must call.
template <typename Op, int kLanes = kWarp>
__device__ __forceinline__ float warp_reduce(float value) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) value = Op::of(value, __shfl_xor_sync(kAllLanes, value, lane));
  return value;
}

// Over a block of kThreads; each thread gets the result. partial: kThreads / 32 floats of shared memory, which the next
// call may reuse at once.
template <typename Op, int kThreads>
__device__ __forceinline__ float block_reduce(float value, float* partial) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "a block is 1 to 32 whole warps");
  value = warp_reduce<Op>(value);
  if constexpr (kWarps == 1) return value;
  const int lane = threadIdx.x % kWarp;
  __syncthreads();  // nobody still reads what an earlier call left in partial
  if (lane == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_reduce<Op>(lane < kWarps ? partial[lane] : Op::kIdentity);
}

}  // namespace fastllm::cuda
