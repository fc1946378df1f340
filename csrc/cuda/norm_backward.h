// What the two kernels of norm_backward share: an element's part in the sums over its row, and its gradient.
#pragma once

#include "cuda/dropout.h"
#include "cuda/norm.h"
#include "cuda/packed.h"
#include "cuda/parameter.h"
#include "cuda/row_group.h"

namespace fastllm::cuda {

constexpr int kLongThreads = 512;  // of norm_backward_long.cu
// Vectors of a row that a thread holds there.
template <int kWidth>
constexpr int kLongVectors = kWidth == 1 ? 6 : 4;

// For rows that registers do not hold: a block of `group` a row, `blocks` of them, each with partial sums of its own.
// They are made in norm_backward_long_bytes() of shared memory.
cudaError_t norm_backward_long(const NormBackwardParams& params, bool wide, RowGroup group, int64_t blocks,
                               cudaStream_t stream);
int64_t norm_backward_long_bytes(const NormBackwardParams& params);

// The same sums, bit for bit, without: for rows whose sums do not fit.
cudaError_t norm_backward_columns(const NormBackwardParams& params, bool wide, RowGroup group, int64_t blocks,
                                  cudaStream_t stream);

struct NormBackwardShared {
  float partial[2][2 * kWarp];  // taken in turns: see RowGroup::reduce
};

// kWidth neighbouring elements of a row.
template <typename T, int kWidth>
struct Elements {
  float grad_output[kWidth], xhat[kWidth], g[kWidth];

  __device__ __forceinline__ Elements(const NormBackwardParams& p, int64_t column, const Packed<T, kWidth>& row,
                                      const Packed<T, kWidth>& grad, float mean, float rstd) {
    float weight[kWidth];
    row.unpack(xhat);
    grad.unpack(grad_output);
    if (p.weight.data != nullptr) load_parameter<T>(p.weight, column, weight);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      xhat[j] = (xhat[j] - mean) * rstd;
      g[j] = p.weight.data != nullptr ? grad_output[j] * weight[j] : grad_output[j];
    }
  }
};

// What a row's elements have in common: its statistics, and the means of g and of g xhat.
struct Statistics {
  float mean, rstd, mean_g = 0.0f, mean_gx = 0.0f;
};

// The sums become the means, over a group's row.
__device__ __forceinline__ void finish(const NormBackwardParams& p, RowGroup group, float one_over_cols, Statistics& s,
                                       float* partial) {
  float sums[2] = {s.mean_g, s.mean_gx};
  group.reduce<Sum>(sums, partial);
  s.mean_g = p.mean != nullptr ? sums[0] * one_over_cols : 0.0f;
  s.mean_gx = sums[1] * one_over_cols;
}

// Adds kWidth elements to the sums that become the means; leaves grad_output xhat, what the weight gets, in xhat.
template <typename T, int kWidth>
__device__ __forceinline__ void add_up(Elements<T, kWidth>& e, Statistics& s) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    s.mean_g += e.g[j];
    s.mean_gx = fmaf(e.g[j], e.xhat[j], s.mean_gx);
    e.xhat[j] *= e.grad_output[j];
  }
}

// Adds what a chunk came to, which is summed by itself: a sum of all of a long row would be off, as what is added is
// small beside it.
__device__ __forceinline__ void add_up(const Statistics& chunk, Statistics& s) {
  s.mean_g += chunk.mean_g;
  s.mean_gx += chunk.mean_gx;
}

// Writes grad_normalized, and with dropout grad_input, of kWidth elements; `gradient` becomes what the input bias gets.
// Without kResidual there is neither dropout nor grad_residual.
template <bool kResidual, typename T, int kWidth>
__device__ __forceinline__ void write(const NormBackwardParams& p, const DropoutMask& mask, int64_t start,
                                      int64_t column, const Packed<T, kWidth>& normalized,
                                      const Packed<T, kWidth>& grad_output, const Packed<T, kWidth>& grad_residual,
                                      const Statistics& s, float (&gradient)[kWidth]) {
  using Vector = Packed<T, kWidth>;
  const int64_t index = start + column;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) gradient[j] = 0.0f;
  if (kResidual && p.grad_residual != nullptr) grad_residual.unpack(gradient);
  if (p.grad_output != nullptr) {
    const Elements<T, kWidth> e(p, column, normalized, grad_output, s.mean, s.rstd);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) gradient[j] += s.rstd * (e.g[j] - s.mean_g - e.xhat[j] * s.mean_gx);
  }
  Vector::pack(gradient).store(static_cast<T*>(p.grad_normalized) + index);
  if (!kResidual || p.grad_input == nullptr) return;
  if (!mask.is_off()) {
    float factor[kWidth];
    mask.factors(index, factor);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) gradient[j] *= factor[j];
  }
  Vector::pack(gradient).store(static_cast<T*>(p.grad_input) + index);
}

}  // namespace fastllm::cuda
