// The losses' sum or mean, and the mean's denominator, without a word to the host.
//
// Bytes: 12 a row, nothing beside the logits. Pieces of kLossPiece rows are summed by a block each and their sums by
// one block more, so the order depends on the number of rows alone.
#include "cuda/cross_entropy.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;

struct ReduceShared {
  float partial[kThreads / kWarp];
};

__global__ void __launch_bounds__(kThreads) pieces_kernel(CrossEntropyReduceParams p) {
  float* shared = shared_memory<ReduceShared>()->partial;
  const int64_t begin = blockIdx.x * kLossPiece, end = min(p.rows, begin + kLossPiece);
  float loss = 0.0f, counted = 0.0f;
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    if (p.losses) loss += p.losses[row];
    const int64_t target = p.target[row];
    if (target == p.ignore_index || target < 0 || target >= p.classes) continue;
    counted += p.weight ? p.weight[target] : 1.0f;
  }
  loss = block_reduce<Sum, kThreads>(loss, shared);
  counted = block_reduce<Sum, kThreads>(counted, shared);
  if (threadIdx.x != 0) return;
  p.partial[2 * blockIdx.x] = loss;
  p.partial[2 * blockIdx.x + 1] = counted;
}

__global__ void __launch_bounds__(kThreads) total_kernel(CrossEntropyReduceParams p, int64_t pieces) {
  float* shared = shared_memory<ReduceShared>()->partial;
  float loss = 0.0f, counted = 0.0f;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) {
    loss += p.partial[2 * i];
    counted += p.partial[2 * i + 1];
  }
  loss = block_reduce<Sum, kThreads>(loss, shared);
  counted = block_reduce<Sum, kThreads>(counted, shared);
  if (threadIdx.x != 0) return;
  if (p.loss) *p.loss = p.mean ? loss / counted : loss;
  *p.scale = !p.mean ? 1.0f : counted == 0.0f ? 0.0f : 1.0f / counted;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

cudaError_t cross_entropy_reduce(const CrossEntropyReduceParams& p, cudaStream_t stream) {
  const int64_t pieces = (p.rows + kLossPiece - 1) / kLossPiece;
  if (pieces > 0) {
    const cudaError_t error =
        launch<pieces_kernel>({static_cast<unsigned>(pieces), kThreads, sizeof(ReduceShared)}, stream, p);
    if (error != cudaSuccess) return error;
  }
  return launch<total_kernel>({1, kThreads, sizeof(ReduceShared)}, stream, p, pieces);
}

}  // namespace fastllm::cuda
