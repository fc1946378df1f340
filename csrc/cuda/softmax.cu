// Softmax over the last dimension and its gradient: output (grad_output - sum grad_output output).
//
// Bound by memory: forward 2 sizeof(T) bytes an element, backward 3. Expected of an H100: 90% of what a copy reaches,
// from rows of 128 bytes on (256 in float32).
// A thread holds 16 elements of a row, in backward 2 packs of 16 bytes of each tensor: 32 bytes in flight or more, some
// 40 KiB a multiprocessor, where 20 KiB hide memory's latency; and one exponential an element: forward takes it against
// the thread's own maximum, and corrects it by one factor a thread when the row's maximum is known. So a warp takes a
// row of up to 512 elements without a barrier and 1,024 threads one of 16,384; longer ones are read twice, from L2 the
// second time. split_softmax.cu has few rows that are longer still.
#include "cuda/softmax.h"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/online_softmax.h"
#include "cuda/packed.h"
#include "cuda/row_group.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kMostThreads = 1024;

struct Shared {
  float maximum[kMostThreads / kWarp];
  float sum[kMostThreads / kWarp];
};

template <typename T, int kWidth, int kVectors>
__global__ void __launch_bounds__(kMostThreads, 1) softmax_forward_kernel(SoftmaxParams p, RowGroup group) {
  using Vector = Packed<T, kWidth>;
  Shared* shared = shared_memory<Shared>();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const int64_t vectors = row < p.outer ? p.size / kWidth : 0;  // a group without a row comes along to the barriers
  const T* input = static_cast<const T*>(p.input) + row * p.size;
  T* output = static_cast<T*>(p.output) + row * p.size;
  float e[kVectors][kWidth];  // a row of one chunk stays here, as exponentials against this thread's maximum
  const auto read = [&](const Chunk& chunk) {
    Vector x[kVectors];
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) { x[i] = Vector::load(input + v * kWidth); });
    group.for_each<kVectors>(chunk, [&](int i, int64_t) { x[i].unpack(e[i]); });
  };

  OnlineSoftmax own;
  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    read(chunk);
    float upper = -INFINITY;
    group.for_each<kVectors>(chunk, [&](int i, int64_t) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) upper = Max::of(upper, e[i][j]);
    });
    own.raise(upper);
    group.for_each<kVectors>(chunk, [&](int i, int64_t) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) e[i][j] = own.add(e[i][j]);
    });
  }
  const float maximum = group.reduce<Max>(own.maximum, shared->maximum);
  const float correction = expf(own.maximum - maximum);
  const float total = group.reduce<Sum>(own.sum() * correction, shared->sum);
  const float factor = group.chunks > 1 ? 1.0f / total : correction / total;

  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    if (group.chunks > 1) {
      read(chunk);
      group.for_each<kVectors>(chunk, [&](int i, int64_t) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) e[i][j] = expf(e[i][j] - maximum);
      });
    }
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) e[i][j] *= factor;
      Vector::pack(e[i]).store(output + v * kWidth);
    });
  }
}

template <typename T, int kWidth, int kVectors>
__global__ void __launch_bounds__(kMostThreads, 1) softmax_backward_kernel(SoftmaxParams p, RowGroup group) {
  using Vector = Packed<T, kWidth>;
  Shared* shared = shared_memory<Shared>();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index(), start = row * p.size;
  const int64_t vectors = row < p.outer ? p.size / kWidth : 0;
  const T* softmax = static_cast<const T*>(p.input) + start;
  const T* grad_output = static_cast<const T*>(p.grad_output) + start;
  T* grad_input = static_cast<T*>(p.output) + start;
  Vector y[kVectors], dy[kVectors];  // a row of one chunk stays here
  const auto read = [&](const Chunk& chunk) {
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
      y[i] = Vector::load(softmax + v * kWidth);
      dy[i] = Vector::load(grad_output + v * kWidth);
    });
  };

  float dot = 0.0f;
  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    read(chunk);
    float part = 0.0f;  // as in OnlineSoftmax
    group.for_each<kVectors>(chunk, [&](int i, int64_t) {
      float probability[kWidth], gradient[kWidth];
      y[i].unpack(probability);
      dy[i].unpack(gradient);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) part = fmaf(probability[j], gradient[j], part);
    });
    dot += part;
  }
  dot = group.reduce<Sum>(dot, shared->sum);

  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    if (group.chunks > 1) read(chunk);
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
      float probability[kWidth], gradient[kWidth];
      y[i].unpack(probability);
      dy[i].unpack(gradient);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) gradient[j] = probability[j] * (gradient[j] - dot);
      Vector::pack(gradient).store(grad_input + v * kWidth);
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth, bool kBackward>
cudaError_t launch_width(const SoftmaxParams& p, cudaStream_t stream) {
  constexpr int kVectors = kBackward ? (kWidth == 1 ? 4 : 2) : (kWidth == 1 ? 8 : 16 / kWidth);
  const RowGroup group = RowGroup::of(p.size / kWidth, kWidth * sizeof(T), kVectors, kMostThreads);
  const auto blocks = static_cast<unsigned>((p.outer + group.rows_per_block() - 1) / group.rows_per_block());
  const Launch how{dim3(blocks), dim3(group.threads()), sizeof(Shared)};
  if constexpr (kBackward) {
    return launch<softmax_backward_kernel<T, kWidth, kVectors>>(how, stream, p, group);
  } else {
    return launch<softmax_forward_kernel<T, kWidth, kVectors>>(how, stream, p, group);
  }
}

template <bool kBackward>
cudaError_t launch_dtype(const SoftmaxParams& p, cudaStream_t stream) {
  if (p.outer * p.size == 0) return cudaSuccess;
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool wide = rows_are_aligned<T>(p.input, p.size) && is_aligned(p.grad_output) && is_aligned(p.output);
    return wide ? launch_width<T, kWidest<T>, kBackward>(p, stream) : launch_width<T, 1, kBackward>(p, stream);
  });
}

}  // namespace

cudaError_t softmax_forward(const SoftmaxParams& params, cudaStream_t stream) {
  if (params.inner != 1) return strided_softmax_forward(params, stream);
  if (softmax_pieces(params) > 0) return split_softmax_forward(params, stream);
  return launch_dtype<false>(params, stream);
}

cudaError_t softmax_backward(const SoftmaxParams& params, cudaStream_t stream) {
  if (params.inner != 1) return strided_softmax_backward(params, stream);
  return launch_dtype<true>(params, stream);
}

}  // namespace fastllm::cuda
