// norm_backward for rows whose sums no shared memory holds (on an H100, two parameters of 29,000 columns).
//
// Bound by memory: 5 sizeof(T) bytes an element. A first kernel reads row and gradient and leaves the row's two means;
// a second one reads both again, column by column: a thread keeps to four columns, whose sums are in its registers, and
// walks down the rows of its group. That is two bytes in three more than with sums in shared memory, but without a sum
// in global memory, which takes 16 bytes an element and parameter, and it keeps a GPU busy with few rows too.
// In flight: 128 bytes of each of 1,024 threads in the first kernel; in the second 32 (64 in float32) of 1,024 threads,
// 32 KiB a multiprocessor.
// A group is a block of norm_backward_long.cu: the same rows, added in the same order. So which of the two made a sum
// cannot be seen from it, and it is the same on a GPU with less shared memory.
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/norm_backward.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

// A block a row. It adds as norm_backward_long.cu does.
template <typename T, int kWidth, int kVectors>
__global__ void __launch_bounds__(kLongThreads, 2)
    row_means_kernel(NormBackwardParams p, RowGroup group, float one_over_cols) {
  using Vector = Packed<T, kWidth>;
  NormBackwardShared* shared = shared_memory<NormBackwardShared>();
  const int64_t row = blockIdx.x, start = row * p.cols;
  const T* normalized = static_cast<const T*>(p.normalized) + start;
  const T* grad_output = static_cast<const T*>(p.grad_output) + start;
  Statistics statistics{p.mean != nullptr ? p.mean[row] : 0.0f, p.rstd[row]};
#pragma unroll 1
  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(p.cols / kWidth, c);
    Vector x[kVectors], grad[kVectors];
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
      x[i] = Vector::load(normalized + v * kWidth);
      grad[i] = Vector::load(grad_output + v * kWidth);
    });
    Statistics part{statistics.mean, statistics.rstd};
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
      Elements<T, kWidth> e(p, v * kWidth, x[i], grad[i], statistics.mean, statistics.rstd);
      add_up(e, part);
    });
    add_up(part, statistics);
  }
  finish(p, group, one_over_cols, statistics, shared->partial[0]);
  if (group.lane() != 0) return;
  p.row_means[2 * row] = statistics.mean_g;
  p.row_means[2 * row + 1] = statistics.mean_gx;
}

constexpr int kColumnThreads = 256, kRows = 2;

// Group g takes rows g, g + groups, and so on; a block has a strip of their columns.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kColumnThreads, 4)
    columns_kernel(NormBackwardParams p, int64_t groups, int64_t strips) {
  using Vector = Packed<T, kWidth>;
  const DropoutMask mask(p.dropout);
  const int64_t group = blockIdx.x / strips;
  const int64_t column = (blockIdx.x % strips * kColumnThreads + threadIdx.x) * kWidth;
  if (column >= p.cols) return;
  float weight_sum[kWidth] = {}, bias_sum[kWidth] = {}, input_bias_sum[kWidth] = {};
#pragma unroll 1
  for (int64_t first = group; first < p.rows; first += kRows * groups) {
    Vector x[kRows], grad[kRows], more[kRows];
    const auto for_each_row = [&](auto&& body) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t row = first + i * groups;
        if (row < p.rows) body(i, row, row * p.cols);
      }
    };
    for_each_row([&](int i, int64_t, int64_t start) {
      if (p.grad_output != nullptr) {
        x[i] = Vector::load_once(static_cast<const T*>(p.normalized) + start + column);
        grad[i] = Vector::load_once(static_cast<const T*>(p.grad_output) + start + column);
      }
      if (p.grad_residual != nullptr) {
        more[i] = Vector::load_once(static_cast<const T*>(p.grad_residual) + start + column);
      }
    });
    for_each_row([&](int i, int64_t row, int64_t start) {
      Statistics statistics{p.mean != nullptr ? p.mean[row] : 0.0f, p.rstd[row]};
      if (p.grad_output != nullptr) {
        Statistics unused{};
        Elements<T, kWidth> e(p, column, x[i], grad[i], statistics.mean, statistics.rstd);
        add_up(e, unused);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          weight_sum[j] += e.xhat[j];
          bias_sum[j] += e.grad_output[j];
        }
        statistics.mean_g = p.row_means[2 * row];
        statistics.mean_gx = p.row_means[2 * row + 1];
      }
      float gradient[kWidth];
      write<true>(p, mask, start, column, x[i], grad[i], more[i], statistics, gradient);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) input_bias_sum[j] += gradient[j];
    });
  }
  const auto leave = [&](const ColumnSum& wanted, const float (&sum)[kWidth]) {
    if (wanted.output != nullptr) store_floats(wanted.partials + group * p.cols + column, sum);
  };
  leave(p.grad_weight, weight_sum);
  leave(p.grad_bias, bias_sum);
  leave(p.grad_input_bias, input_bias_sum);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, bool kWide>
cudaError_t launch_width(const NormBackwardParams& p, RowGroup group, int64_t groups, cudaStream_t stream) {
  if (p.grad_output != nullptr) {
    constexpr int kWidth = kWide ? kWidest<T> : 1;
    const Launch how{dim3(static_cast<unsigned>(p.rows)), dim3(group.threads()), sizeof(NormBackwardShared)};
    const cudaError_t error = launch<row_means_kernel<T, kWidth, kLongVectors<kWidth>>>(
        how, stream, p, group, 1.0f / static_cast<float>(p.cols));
    if (error != cudaSuccess) return error;
  }
  constexpr int kWidth = kWide ? 4 : 1;
  const int64_t strips = (p.cols + kColumnThreads * kWidth - 1) / (kColumnThreads * kWidth);
  return launch<columns_kernel<T, kWidth>>({dim3(static_cast<unsigned>(strips * groups)), dim3(kColumnThreads)}, stream,
                                           p, groups, strips);
}

}  // namespace

cudaError_t norm_backward_columns(const NormBackwardParams& params, bool wide, RowGroup group, int64_t blocks,
                                  cudaStream_t stream) {
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return wide ? launch_width<T, true>(params, group, blocks, stream)
                : launch_width<T, false>(params, group, blocks, stream);
  });
}

}  // namespace fastllm::cuda
