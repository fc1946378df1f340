// What warp functions, barriers and atomics return.
#include "cuda/shared.h"
#include "emulator/sample.h"

namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

}  // namespace

// The lane that each of the 32 lanes reads from. which: 0 __shfl_sync, 1 up, 2 down, 3 xor.
__global__ void shuffled_lanes(int which, int operand, int width, int* from) {
  const int lane = threadIdx.x;
  from[lane] = which == 0   ? __shfl_sync(kAll, lane, operand, width)
               : which == 1 ? __shfl_up_sync(kAll, lane, operand, width)
               : which == 2 ? __shfl_down_sync(kAll, lane, operand, width)
                            : __shfl_xor_sync(kAll, lane, operand, width);
}
SAMPLE(shuffled_lanes);

// Odd and even lanes meet among themselves. results: (lanes, 3): ballot, any, all of `predicates`.
__global__ void votes(const int* predicates, unsigned* results) {
  const unsigned lane = threadIdx.x, mask = lane % 2 ? 0xAAAAAAAAu : 0x55555555u;
  results[3 * lane] = __ballot_sync(mask, predicates[lane]);
  results[3 * lane + 1] = __any_sync(mask, predicates[lane]);
  results[3 * lane + 2] = __all_sync(mask, predicates[lane]);
}
SAMPLE(votes);

// results: (threads, 3): or, and, count of `predicates`; threads from `live` on have left before.
__global__ void barrier_votes(const int* predicates, int* results, int live) {
  const int i = threadIdx.x;
  if (i >= live) return;
  results[3 * i] = __syncthreads_or(predicates[i]);
  results[3 * i + 1] = __syncthreads_and(predicates[i]);
  results[3 * i + 2] = __syncthreads_count(predicates[i]);
}
SAMPLE(barrier_votes);

// Every thread of the grid does each once.
__global__ void atomics(int* sum, unsigned* ring, int* least, int* most, unsigned long long* wide, int* swapped) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(sum, -i);
  atomicInc(ring, 6u);
  atomicMin(least, -i);
  atomicMax(most, i);
  atomicAdd(wide, 1ull << 33);
  atomicCAS(swapped, 7, 8);
}
SAMPLE(atomics);

// Where each thread is: (grid's threads, 6).
__global__ void indices(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  unsigned* row = out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
  row[0] = blockIdx.x, row[1] = blockIdx.y, row[2] = blockIdx.z;
  row[3] = threadIdx.x, row[4] = threadIdx.y, row[5] = threadIdx.z;
}
SAMPLE(indices);

// Which thread of the block came k-th: by lottery.
__global__ void arrivals(int* order, unsigned* counter) {
  order[atomicAdd(counter, 1u)] = threadIdx.x;
}
SAMPLE(arrivals);

// The last block to come puts the counter back plainly. Nobody fences, as nobody reads what others wrote.
__global__ void counts_and_resets(int* y, unsigned* counter) {
  y[blockIdx.x] = 1;
  if (atomicAdd(counter, 1u) == gridDim.x - 1) *counter = 0;
}
SAMPLE(counts_and_resets);

// Threads of a block take turns under a lock: the one that waits lets others go on.
__global__ void lock(int* state, int* sum) {
  while (atomicCAS(state, 0, 1) != 0) {
  }
  atomicAdd(sum, 1);
  atomicExch(state, 0);
}
SAMPLE(lock);
