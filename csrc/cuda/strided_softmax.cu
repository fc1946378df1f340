// Softmax over a dimension that is not the last, and its gradient: each of outer x inner columns has one of its own.
//
// Bound by memory as over the last dimension: 2 sizeof(T) bytes an element forward, 3 backward.
// The threads of a warp work on neighbouring columns, so that they read neighbouring addresses: 64 bytes (2 whole
// sectors) a warp and load of a 16-bit dtype, one element a thread, with 16 loads in flight (8 pairs in backward). 1 to
// 32 warps share 32 columns, whatever it takes to hold them: up to 512 elements (256) a column are read once; of longer
// ones 64 bytes times the column's length are read again, from L2 as long as all blocks' fit.
#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/online_softmax.h"
#include "cuda/shared.h"
#include "cuda/softmax.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kMostWarps = 32;
constexpr int kLeastWarps = 8;  // of a block; several sets of 32 columns if a column is short

struct Shared {
  float maximum[kMostWarps][kWarp];
  float sum[kMostWarps][kWarp];
};

// 32 columns, whose elements a number of warps (a power of two) share out in turns.
struct ColumnGroup {
  int warps;
  int log2_warps;  // for a division
  int chunks;      // of a column: what the warps hold at once

  static ColumnGroup of(int64_t size, int held) {
    ColumnGroup group{1, 0, 1};
    while (group.warps < kMostWarps && group.warps * held < size) group.warps *= 2, ++group.log2_warps;
    group.chunks = static_cast<int>((size + group.warps * held - 1) / (group.warps * held));
    return group;
  }
  int warps_of_block() const { return std::max(warps, kLeastWarps); }

  __device__ __forceinline__ int warp() const { return threadIdx.x / kWarp; }
  __device__ __forceinline__ int64_t column() const {
    const int64_t first_warp = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp);
    return ((first_warp + warp()) >> log2_warps) * kWarp + threadIdx.x % kWarp;
  }

  // body(i, offset) for each of this thread's elements of a chunk of a column of `size`, `inner` apart.
  template <int kHeld, typename Body>
  __device__ __forceinline__ void for_each(int64_t size, int64_t inner, int chunk, Body&& body) const {
    const int64_t first = static_cast<int64_t>(chunk) * kHeld * warps + (warp() & (warps - 1));
    const int left = static_cast<int>(size - first < kHeld * warps ? size - first : kHeld * warps);
    int64_t offset = first * inner;
#pragma unroll
    for (int i = 0; i < kHeld; ++i, offset += warps * inner) {
      if (i * warps < left) body(i, offset);
    }
  }

  // Over a column, in a fixed order. partial: a float a thread of shared memory, others than at the call before.
  template <typename Op>
  __device__ __forceinline__ float reduce(float value, float (*partial)[kWarp]) const {
    if (warps == 1) return value;
    const int lane = threadIdx.x % kWarp, first = warp() & ~(warps - 1);
    partial[warp()][lane] = value;
    __syncthreads();
    float total = partial[first][lane];
    for (int i = 1; i < warps; ++i) total = Op::of(total, partial[first + i][lane]);
    return total;
  }
};

// Where a column's first element is.
__device__ __forceinline__ int64_t start_of(const SoftmaxParams& p, int64_t column) {
  return column / p.inner * p.size * p.inner + column % p.inner;
}

template <typename T, int kHeld>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    strided_softmax_forward_kernel(SoftmaxParams p, ColumnGroup group) {
  Shared* shared = shared_memory<Shared>();
  const int64_t column = group.column(), start = start_of(p, column);
  const int64_t size = column < p.outer * p.inner ? p.size : 0;
  const T* input = static_cast<const T*>(p.input) + start;
  T* output = static_cast<T*>(p.output) + start;
  float e[kHeld];  // a column of one chunk stays here, as exponentials against this thread's maximum
  const auto read = [&](int chunk) {
    group.for_each<kHeld>(size, p.inner, chunk, [&](int i, int64_t offset) { e[i] = to_float(input[offset]); });
  };

  OnlineSoftmax own;
  for (int c = 0; c < group.chunks; ++c) {
    read(c);
    float upper = -INFINITY;
    group.for_each<kHeld>(size, p.inner, c, [&](int i, int64_t) { upper = Max::of(upper, e[i]); });
    own.raise(upper);
    group.for_each<kHeld>(size, p.inner, c, [&](int i, int64_t) { e[i] = own.add(e[i]); });
  }
  const float maximum = group.reduce<Max>(own.maximum, shared->maximum);
  const float correction = expf(own.maximum - maximum);
  const float total = group.reduce<Sum>(own.sum() * correction, shared->sum);
  const float factor = group.chunks > 1 ? 1.0f / total : correction / total;

  for (int c = 0; c < group.chunks; ++c) {
    if (group.chunks > 1) {
      read(c);
      group.for_each<kHeld>(size, p.inner, c, [&](int i, int64_t) { e[i] = expf(e[i] - maximum); });
    }
    group.for_each<kHeld>(size, p.inner, c,
                          [&](int i, int64_t offset) { output[offset] = from_float<T>(e[i] * factor); });
  }
}

template <typename T, int kHeld>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    strided_softmax_backward_kernel(SoftmaxParams p, ColumnGroup group) {
  Shared* shared = shared_memory<Shared>();
  const int64_t column = group.column(), start = start_of(p, column);
  const int64_t size = column < p.outer * p.inner ? p.size : 0;
  const T* softmax = static_cast<const T*>(p.input) + start;
  const T* grad_output = static_cast<const T*>(p.grad_output) + start;
  T* grad_input = static_cast<T*>(p.output) + start;
  T y[kHeld], dy[kHeld];  // a column of one chunk stays here
  const auto read = [&](int chunk) {
    group.for_each<kHeld>(size, p.inner, chunk, [&](int i, int64_t offset) {
      y[i] = softmax[offset];
      dy[i] = grad_output[offset];
    });
  };

  float dot = 0.0f;
  for (int c = 0; c < group.chunks; ++c) {
    read(c);
    float part = 0.0f;  // as in OnlineSoftmax
    group.for_each<kHeld>(size, p.inner, c,
                          [&](int i, int64_t) { part = fmaf(to_float(y[i]), to_float(dy[i]), part); });
    dot += part;
  }
  dot = group.reduce<Sum>(dot, shared->sum);

  for (int c = 0; c < group.chunks; ++c) {
    if (group.chunks > 1) read(c);
    group.for_each<kHeld>(size, p.inner, c, [&](int i, int64_t offset) {
      grad_input[offset] = from_float<T>(to_float(y[i]) * (to_float(dy[i]) - dot));
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <bool kBackward>
cudaError_t launch_dtype(const SoftmaxParams& p, cudaStream_t stream) {
  constexpr int kHeld = kBackward ? 4 : 8;
  const int64_t columns = p.outer * p.inner;
  if (columns * p.size == 0) return cudaSuccess;
  const ColumnGroup group = ColumnGroup::of(p.size, kHeld);
  const int64_t columns_of_block = kWarp * (group.warps_of_block() / group.warps);
  const Launch how{dim3(static_cast<unsigned>((columns + columns_of_block - 1) / columns_of_block)),
                   dim3(group.warps_of_block() * kWarp), sizeof(Shared)};
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (kBackward) {
      return launch<strided_softmax_backward_kernel<T, kHeld>>(how, stream, p, group);
    } else {
      return launch<strided_softmax_forward_kernel<T, kHeld>>(how, stream, p, group);
    }
  });
}

}  // namespace

cudaError_t strided_softmax_forward(const SoftmaxParams& params, cudaStream_t stream) {
  return launch_dtype<false>(params, stream);
}

cudaError_t strided_softmax_backward(const SoftmaxParams& params, cudaStream_t stream) {
  return launch_dtype<true>(params, stream);
}

}  // namespace fastllm::cuda
