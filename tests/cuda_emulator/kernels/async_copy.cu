// A copy through shared memory by cp.async, two stages deep: each block copies `chunks` pieces of 16 bytes a thread.
#include "cuda/ptx.h"
#include "cuda/shared.h"
#include "emulator/sample.h"

namespace {

using namespace fastllm::cuda;

constexpr int kThreads = 64, kStages = 2;

enum class Mistake { kNone, kNoWait, kNoBarrier, kNoBarrierBeforeReuse };

}  // namespace

// What thread i copies in, thread i + 1 copies out, so that a barrier is needed.
template <Mistake kMistake>
__global__ void copy_in_stages(const uint4* from, uint4* to, int chunks) {
  auto* stage = shared_memory<uint4[kStages][kThreads]>();
  const int me = threadIdx.x, next = (me + 1) % kThreads;
  auto start = [&](int chunk) {
    if (chunk < chunks) cp_async<16>(&(*stage)[chunk % kStages][me], from + chunk * kThreads + me);
    cp_async_commit();
  };
  start(0);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    start(chunk + 1);
    if constexpr (kMistake != Mistake::kNoWait) cp_async_wait<1>();
    if constexpr (kMistake != Mistake::kNoBarrier) __syncthreads();
    to[chunk * kThreads + next] = (*stage)[chunk % kStages][next];
    if constexpr (kMistake != Mistake::kNoBarrierBeforeReuse) __syncthreads();
  }
}
SAMPLE(copy_in_stages<Mistake::kNone>);
SAMPLE(copy_in_stages<Mistake::kNoWait>);
SAMPLE(copy_in_stages<Mistake::kNoBarrier>);
SAMPLE(copy_in_stages<Mistake::kNoBarrierBeforeReuse>);

// Rows past the end are filled with zeros, and nothing is read there.
__global__ void copy_with_zeros(const uint4* from, uint4* to, int rows) {
  auto* stage = shared_memory<uint4[32]>();
  const int me = threadIdx.x;
  cp_async<16>(&(*stage)[me], from + me, me < rows);
  cp_async_commit();
  cp_async_wait<0>();
  to[me] = (*stage)[me];
}
SAMPLE(copy_with_zeros);
