// Kernels with one mistake each, by what it is called. Blocks have 64 threads unless a kernel says otherwise.
#include "cuda/shared.h"
#include "emulator/sample.h"

namespace {

using fastllm::cuda::shared_memory;

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xFFFFFFFFu;

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Global memory
// ---------------------------------------------------------------------------------------------------------------------

__global__ void reads_past_the_end(const float* x, float* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i] = x[i + 1];
}
SAMPLE(reads_past_the_end);

__global__ void writes_before_the_start(const float* x, float* y, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i - 1] = x[i];
}
SAMPLE(writes_before_the_start);

// Sixteen bytes from an address that is only a multiple of four.
__global__ void reads_misaligned(const float* x, float4* y) {
  y[threadIdx.x] = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + 1);
}
SAMPLE(reads_misaligned);

__global__ void blocks_write_the_same(float* y) {
  if (threadIdx.x == 5) y[0] = static_cast<float>(blockIdx.x);
}
SAMPLE(blocks_write_the_same);

__global__ void threads_write_the_same(float* y) {
  y[threadIdx.x / 2] = 1.0f;
}
SAMPLE(threads_write_the_same);

__global__ void block_reads_what_another_wrote(float* y) {
  y[blockIdx.x] = blockIdx.x == 0 ? 1.0f : y[0];
}
SAMPLE(block_reads_what_another_wrote);

__global__ void adds_floats_atomically(float* y) {
  atomicAdd(y, 1.0f);
}
SAMPLE(adds_floats_atomically);

// A plain read of what others change atomically at the same time.
__global__ void mixes_atomic_and_plain(int* y) {
  if (threadIdx.x == 0) {
    y[1] = y[0];
  } else {
    atomicAdd(y, 1);
  }
}
SAMPLE(mixes_atomic_and_plain);

int host_variable = 0;

__global__ void writes_a_variable_of_the_host() {
  host_variable = 1;
}
SAMPLE(writes_a_variable_of_the_host);

// A pointer to one thread's own variable is no use to another.
__global__ void reads_another_threads_stack(float* y) {
  auto* shared = shared_memory<const float*>();
  float own = 1.0f;
  if (threadIdx.x == 0) *shared = &own;
  __syncthreads();
  y[threadIdx.x] = **shared;
  __syncthreads();
}
SAMPLE(reads_another_threads_stack);

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory
// ---------------------------------------------------------------------------------------------------------------------

template <bool kBarrier>
__global__ void reads_a_neighbours_value(const float* x, float* y) {
  auto* shared = shared_memory<float[kThreads]>();
  (*shared)[threadIdx.x] = x[threadIdx.x];
  if constexpr (kBarrier) __syncthreads();
  y[threadIdx.x] = (*shared)[kThreads - 1 - threadIdx.x];
}
SAMPLE(reads_a_neighbours_value<true>);
SAMPLE(reads_a_neighbours_value<false>);

// Lanes exchange values; a shuffle between orders nothing in memory, __syncwarp does.
template <bool kSyncwarp>
__global__ void reads_another_lanes_value(const float* x, float* y) {
  auto* shared = shared_memory<float[kThreads]>();
  (*shared)[threadIdx.x] = x[threadIdx.x];
  if constexpr (kSyncwarp) {
    __syncwarp();
  } else {
    __shfl_xor_sync(kAll, 0, 1);
  }
  y[threadIdx.x] = (*shared)[threadIdx.x ^ 1];
}
SAMPLE(reads_another_lanes_value<true>);
SAMPLE(reads_another_lanes_value<false>);

// Half a warp meets; the other half is not ordered with it.
__global__ void syncs_half_a_warp(const float* x, float* y) {
  auto* shared = shared_memory<float[32]>();
  (*shared)[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x < 16) {
    __syncwarp(0x0000FFFFu);
    y[threadIdx.x] = (*shared)[threadIdx.x ^ 1];  // within the half
  }
  __syncwarp(threadIdx.x < 16 ? 0x0000FFFFu : 0xFFFF0000u);
  if (threadIdx.x == 0) y[0] = (*shared)[16];  // of the other half
}
SAMPLE(syncs_half_a_warp);

__global__ void shared_writes_race() {
  auto* shared = shared_memory<float[kThreads]>();
  (*shared)[threadIdx.x / 2] = 1.0f;
}
SAMPLE(shared_writes_race);

// The second round overwrites what slow threads of the first still read.
__global__ void reuses_without_a_barrier(const float* x, float* y) {
  auto* shared = shared_memory<float[kThreads]>();
  for (int round = 0; round < 2; ++round) {
    (*shared)[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = (*shared)[kThreads - 1 - threadIdx.x];
  }
}
SAMPLE(reuses_without_a_barrier);

// As many floats as threads, of which each reads the one after its own.
__global__ void reads_shared_past_the_end(float* y) {
  auto* shared = shared_memory<float>();
  shared[threadIdx.x] = 0.0f;
  __syncthreads();
  y[threadIdx.x] = shared[threadIdx.x + 1];
}
SAMPLE(reads_shared_past_the_end);

__global__ void reads_what_nobody_wrote(float* y) {
  auto* shared = shared_memory<float[kThreads]>();
  if (threadIdx.x < 40) (*shared)[threadIdx.x] = 0.0f;
  y[threadIdx.x] = (*shared)[threadIdx.x];
}
SAMPLE(reads_what_nobody_wrote);

__global__ void asks_for_more_shared_memory() {
  (*shared_memory<float[kThreads]>())[0] = 0.0f;
}
SAMPLE(asks_for_more_shared_memory);

// ---------------------------------------------------------------------------------------------------------------------
// Barriers, shuffles and votes
// ---------------------------------------------------------------------------------------------------------------------

__global__ void barriers_diverge() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
SAMPLE(barriers_diverge);

// One thread waits in a shuffle for lanes that wait at the barrier.
__global__ void waits_for_those_at_a_barrier() {
  if (threadIdx.x == 3) __shfl_sync(kAll, 0, 0);
  __syncthreads();  // where the others wait
}
SAMPLE(waits_for_those_at_a_barrier);

__global__ void shuffles_with_lanes_that_left() {
  if (threadIdx.x % 32 < 8) return;
  __shfl_sync(kAll, 0, 0);
}
SAMPLE(shuffles_with_lanes_that_left);

__global__ void shuffles_from_an_inactive_lane(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000FFFFu, static_cast<int>(threadIdx.x), 20);
}
SAMPLE(shuffles_from_an_inactive_lane);

__global__ void shuffles_without_naming_itself() {
  __shfl_sync(0x0000FFFFu, 0, 0);
}
SAMPLE(shuffles_without_naming_itself);

__global__ void meets_in_two_places(int* y) {
  if (threadIdx.x % 2) {
    y[threadIdx.x] = __any_sync(kAll, 1);
  } else {
    y[threadIdx.x] = __all_sync(kAll, 1);
  }
}
SAMPLE(meets_in_two_places);

// Waits for a block that comes later: here blocks run one after another, and on a GPU nothing promises better.
__global__ void waits_for_another_block(int* arrived) {
  if (threadIdx.x != 0) return;
  atomicAdd(arrived, 1);
  while (atomicAdd(arrived, 0) < static_cast<int>(gridDim.x)) {
  }
}
SAMPLE(waits_for_another_block);

// Two threads at the same 4 bytes, one of them by a store of 16.
__global__ void mixes_widths(float* y) {
  if (threadIdx.x == 0) *reinterpret_cast<float4*>(y) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (threadIdx.x == 32) y[2] = 1.0f;
}
SAMPLE(mixes_widths);
