// norm_backward for rows that registers do not hold.
//
// Bound by memory: 3 sizeof(T) bytes an element as in norm_backward.cu, and the row and its gradient once more from L1
// or L2. A block of 1,024 threads takes a row at a time. Its sums over rows are in shared memory as far as that goes
// (on an H100, two parameters of 28,000 columns), and past it in the partial sums' own place, several times slower.
// Vectors are four columns wide: their sums are one 16-byte access of shared memory each, without conflicts of banks;
// 8-byte loads of a 16-bit dtype still fill whole lines, 32 bytes a thread in flight.
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/norm_backward.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kSums = 3;  // parameters with a gradient: weight, bias, input_bias

// sums[column..] += values, in shared or global memory; each column is one thread's own.
template <int kWidth>
__device__ __forceinline__ void add_to(float* sums, int64_t column, const float (&value)[kWidth]) {
  if (sums == nullptr) return;
  float sum[kWidth];
  load_floats(sums + column, sum);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sum[j] += value[j];
  store_floats<false>(sums + column, sum);
}

// Block b takes rows b, b + gridDim.x, and so on.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kLongThreads, 1)
    norm_backward_long_kernel(NormBackwardParams p, RowGroup group, float one_over_cols, bool sums_in_shared) {
  using Vector = Packed<T, kWidth>;
  NormBackwardShared* shared = shared_memory<NormBackwardShared>();
  const DropoutMask mask(p.dropout);
  const int64_t vectors = p.cols / kWidth;
  float* area = reinterpret_cast<float*>(shared + 1);
  const auto sums_of = [&](const ColumnSum& wanted) -> float* {
    if (wanted.output == nullptr) return nullptr;
    float* sums = sums_in_shared ? area : wanted.partials + blockIdx.x * p.cols;
    area += p.cols;
    for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x)
      store_anywhere(sums + v * kWidth, Pack<float, kWidth>{});
    return sums;
  };
  float* const sums[kSums] = {sums_of(p.grad_weight), sums_of(p.grad_bias), sums_of(p.grad_input_bias)};
  int turn = 0;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x, turn ^= 1) {
    const float mean = p.mean != nullptr ? p.mean[row] : 0.0f, rstd = p.rstd[row];
    const int64_t start = row * p.cols;
    const T* normalized = static_cast<const T*>(p.normalized) + start;
    const T* grad_output = static_cast<const T*>(p.grad_output) + start;
    const T* grad_residual = static_cast<const T*>(p.grad_residual) + start;
    Vector x[kLongVectors], grad[kLongVectors], more[kLongVectors];
    Statistics statistics{mean, rstd, 0.0f, 0.0f};
    for (int c = 0; p.grad_output != nullptr && c < group.chunks; ++c) {
      const Chunk chunk = group.chunk<kLongVectors>(vectors, c);
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        x[i] = Vector::load(normalized + v * kWidth);
        grad[i] = Vector::load(grad_output + v * kWidth);
      });
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        Elements<T, kWidth> e(p, v * kWidth, x[i], grad[i], mean, rstd);
        add_up(e, statistics);
        add_to(sums[0], v * kWidth, e.xhat);
        add_to(sums[1], v * kWidth, e.grad_output);
      });
    }
    finish(p, group, one_over_cols, statistics, shared->partial[turn]);
    for (int c = 0; c < group.chunks; ++c) {
      const Chunk chunk = group.chunk<kLongVectors>(vectors, c);
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        if (p.grad_output != nullptr) {
          x[i] = Vector::load(normalized + v * kWidth);
          grad[i] = Vector::load(grad_output + v * kWidth);
        }
        if (p.grad_residual != nullptr) more[i] = Vector::load_once(grad_residual + v * kWidth);
      });
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        float gradient[kWidth];
        write<true>(p, mask, start, v * kWidth, x[i], grad[i], more[i], statistics, gradient);
        add_to(sums[2], v * kWidth, gradient);
      });
    }
  }
  if (!sums_in_shared) return;
  const auto leave = [&](const ColumnSum& wanted, const float* sums) {
    if (sums == nullptr) return;
    for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
      store(wanted.partials + blockIdx.x * p.cols + v * kWidth, load<float, kWidth>(sums + v * kWidth));
    }
  };
  leave(p.grad_weight, sums[0]);
  leave(p.grad_bias, sums[1]);
  leave(p.grad_input_bias, sums[2]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

template <typename T, int kWidth>
cudaError_t launch_width(const NormBackwardParams& p, RowGroup group, int64_t blocks, cudaStream_t stream) {
  int64_t bytes = sizeof(NormBackwardShared);
  for (const ColumnSum* sum : {&p.grad_weight, &p.grad_bias, &p.grad_input_bias}) {
    if (sum->output != nullptr) bytes += p.cols * static_cast<int64_t>(sizeof(float));
  }
  const bool sums_in_shared = bytes <= most_shared_bytes();
  const Launch how{dim3(static_cast<unsigned>(blocks)), dim3(group.threads()),
                   sums_in_shared ? static_cast<size_t>(bytes) : sizeof(NormBackwardShared)};
  return launch<norm_backward_long_kernel<T, kWidth>>(how, stream, p, group, 1.0f / static_cast<float>(p.cols),
                                                      sums_in_shared);
}

}  // namespace

cudaError_t norm_backward_long(const NormBackwardParams& params, bool wide, RowGroup group, int64_t blocks,
                               cudaStream_t stream) {
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return wide ? launch_width<T, kLongWidth>(params, group, blocks, stream)
                : launch_width<T, 1>(params, group, blocks, stream);
  });
}

}  // namespace fastllm::cuda
