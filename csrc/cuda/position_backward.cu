// The gradient of embedding's positions: sums of grad_output over the sequences of the batch.
//
// Bytes: grad_output once, one table of positions out: memory-bound, at the read limit. A block takes a position and 32
// vectors of its columns; each of its 4 warps adds every 4th sequence, kInFlight loads at a time, and the warps' sums
// are added in order. So the order depends on the batch alone, and a batch of one long sequence has enough blocks too.
// 16 sequences keep 64 bytes of each of 1,024 threads in flight, 64 KiB a multiprocessor; 8 of them half of that.
#include "cuda/dispatch.h"
#include "cuda/embedding.h"
#include "cuda/launch.h"
#include "cuda/packed.h"
#include "cuda/reduce.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kWarps = 4;
constexpr int kInFlight = 4;
constexpr int kBlocksPerProcessor = 8;  // 64 registers a thread

template <int kWidth>
struct WarpSums {
  float sum[kWarps][kWidth][kWarp];  // lanes last: each in a bank of its own
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksPerProcessor)
    positions_kernel(PositionBackwardParams p, int64_t tiles, const T* grad_output, T* grad_position) {
  WarpSums<kWidth>* shared = shared_memory<WarpSums<kWidth>>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t position = blockIdx.x / tiles, column = (blockIdx.x % tiles * kWarp + lane) * kWidth;
  const int64_t t = position - p.offset;
  const bool in_use = t >= 0 && t < p.length && column < p.channels;
  const int64_t sequences = in_use ? p.count / p.length : 0;
  float sum[kWidth] = {};
#pragma unroll 1  // kInFlight is the unrolling; more would spill
  for (int64_t start = warp; start < sequences; start += kWarps * kInFlight) {
    Packed<T, kWidth> grad[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int64_t b = start + j * kWarps;
      if (b < sequences) grad[j] = Packed<T, kWidth>::load(grad_output + (b * p.length + t) * p.channels + column);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (start + j * kWarps >= sequences) continue;
      float value[kWidth];
      grad[j].unpack(value);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += value[k];
    }
  }
#pragma unroll
  for (int k = 0; k < kWidth; ++k) shared->sum[warp][k][lane] = sum[k];
  __syncthreads();
  if (warp != 0 || column >= p.channels) return;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    for (int w = 1; w < kWarps; ++w) sum[k] += shared->sum[w][k][lane];
  }
  Packed<T, kWidth>::pack(sum).store(grad_position + position * p.channels + column);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth>
cudaError_t launch_positions(const PositionBackwardParams& p, cudaStream_t stream) {
  const int64_t tiles = (p.channels + kWarp * kWidth - 1) / (kWarp * kWidth);
  return launch<positions_kernel<T, kWidth>>(
      {static_cast<unsigned>(p.positions * tiles), kWarps * kWarp, sizeof(WarpSums<kWidth>)}, stream, p, tiles,
      static_cast<const T*>(p.grad_output), static_cast<T*>(p.grad_position));
}

}  // namespace

cudaError_t position_backward(const PositionBackwardParams& p, cudaStream_t stream) {
  if (p.positions == 0 || p.channels == 0) return cudaSuccess;
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool wide =
        rows_are_aligned<T>(p.grad_output, p.channels) && rows_are_aligned<T>(p.grad_position, p.channels);
    return wide ? launch_positions<T, kWidest<T>>(p, stream) : launch_positions<T, 1>(p, stream);
  });
}

}  // namespace fastllm::cuda
