// Sums: of a warp by shuffles, of a block through shared memory, of a grid by the last block to finish.
#include "cuda/shared.h"
#include "emulator/sample.h"

namespace {

using fastllm::cuda::shared_memory;

constexpr unsigned kAll = 0xFFFFFFFFu;

__device__ float warp_sum(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAll, value, lanes);
  return value;
}

__device__ float block_sum(float value) {
  auto* partial = shared_memory<float>();
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  if (lane == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

}  // namespace

__global__ void sum_of_block(const float* x, float* sums) {
  const float sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
SAMPLE(sum_of_block);

// Inclusive sums along the lanes of each warp.
__global__ void scan_of_warp(const int* x, int* sums) {
  const int lane = threadIdx.x % 32;
  int value = x[threadIdx.x];
  for (int delta = 1; delta < 32; delta *= 2) {
    const int below = __shfl_up_sync(kAll, value, delta);
    if (lane >= delta) value += below;
  }
  sums[threadIdx.x] = value;
}
SAMPLE(scan_of_warp);

// Each block leaves its sum; the last one to take a ticket adds them up, in order, and puts the counter back.
template <bool kFenced>
__global__ void sum_of_grid(const float* x, float* sums, unsigned* counter, float* total) {
  struct Shared {
    float partial[32];
    unsigned ticket;
  };
  auto* shared = shared_memory<Shared>();
  const float sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    if constexpr (kFenced) __threadfence();
    shared->ticket = atomicInc(counter, gridDim.x - 1);
  }
  __syncthreads();
  if (shared->ticket != gridDim.x - 1 || threadIdx.x != 0) return;
  float all = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) all += sums[i];
  *total = all;
}
SAMPLE(sum_of_grid<true>);
SAMPLE(sum_of_grid<false>);

enum class Fence { kEachThread, kOneThread, kNone, kWithoutBarrier };

// Column sums of x (blocks, threads): each block leaves its row, the last one adds the rows up. A row is visible to
// other blocks if each of its threads fences and then meets the one that takes the ticket, or if that one fences after
// they met.
template <Fence kFence>
__global__ void column_sums_of_grid(const float* x, float* rows, unsigned* counter, float* sums) {
  auto* ticket = shared_memory<unsigned>();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  rows[i] = x[i];
  if constexpr (kFence == Fence::kEachThread || kFence == Fence::kWithoutBarrier) __threadfence();
  if constexpr (kFence != Fence::kWithoutBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if constexpr (kFence == Fence::kOneThread) __threadfence();
    *ticket = atomicAdd(counter, 1u);
  }
  __syncthreads();
  if (*ticket != gridDim.x - 1) return;
  float sum = 0.0f;
  for (unsigned row = 0; row < gridDim.x; ++row) sum += rows[row * blockDim.x + threadIdx.x];
  sums[threadIdx.x] = sum;
  if (threadIdx.x == 0) *counter = 0;  // plainly: all who would count have counted
}
SAMPLE(column_sums_of_grid<Fence::kEachThread>);
SAMPLE(column_sums_of_grid<Fence::kOneThread>);
SAMPLE(column_sums_of_grid<Fence::kNone>);
SAMPLE(column_sums_of_grid<Fence::kWithoutBarrier>);
