// Layer norm and RMS norm over rows, optionally of residual + dropout(input + input_bias) made in the same pass.
//
// Bound by memory: 2 sizeof(T) bytes an element (read the input, write the output), 4 sizeof(T) with a residual.
// Expected of an H100 (3.35 TB/s): 90% of what a copy reaches from rows of 256 bytes on; shorter ones leave threads too
// little to do beside what each has to do once.
// A thread holds 4 packs of 16 bytes, 2 of the input and 2 of the residual where there is one: 64 bytes in flight, 64
// KiB for the 1,024 threads that 64 registers each leave a multiprocessor, where some 20 KiB hide memory's latency. So
// a warp takes a row of up to 2 KiB without a barrier and 1,024 threads one of 64 KiB (half that with a residual), read
// once; longer ones are read twice more, from L2. Of a 16-bit dtype, an element takes some 22 instructions, and memory
// leaves time for 39: hence conversions of whole words (packed.h), and no work for what is not asked for.
// The variance is the mean square of deviations, over the registers: E[x^2] - E[x]^2 would lose everything where the
// mean is large. Their own mean is what the mean was rounded off by: of a mean of a million, 0.03 and more.
// What a chunk comes to is summed by itself: a sum of all of a long row would be off, as what is added is small beside
// it.
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/norm.h"
#include "cuda/packed.h"
#include "cuda/parameter.h"
#include "cuda/row_group.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kMostThreads = 1024;

struct Shared {
  float sum[kMostThreads / kWarp];
  float deviations[2 * kMostThreads / kWarp];  // and their squares
};

// residual + dropout(input + input_bias), rounded as it is stored: what is normalised is what backward will read.
template <typename T, int kWidth>
__device__ __forceinline__ Packed<T, kWidth> add(const NormForwardParams& p, const DropoutMask& mask, int64_t index,
                                                 int64_t column, const Packed<T, kWidth>& input,
                                                 const Packed<T, kWidth>& residual) {
  float x[kWidth], factor[kWidth], sum[kWidth];
  input.unpack(x);
  residual.unpack(sum);
  if (p.input_bias.data != nullptr) {
    float bias[kWidth];
    load_parameter<T>(p.input_bias, column, bias);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] += bias[j];
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) factor[j] = 1.0f;
  if (!mask.is_off()) mask.factors(index, factor);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sum[j] = fmaf(x[j], factor[j], sum[j]);
  return Packed<T, kWidth>::pack(sum);
}

// What a row is normalised by: (x - mean) rstd + shift, where mean is rounded and shift is what that makes up for.
struct Normal {
  float mean, rstd, shift;
};

template <typename T, int kWidth>
__device__ __forceinline__ Packed<T, kWidth> normalize(const NormForwardParams& p, int64_t column, const Normal& normal,
                                                       const Packed<T, kWidth>& row) {
  float x[kWidth], parameter[kWidth];
  row.unpack(x);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) x[j] = fmaf(x[j] - normal.mean, normal.rstd, normal.shift);
  if (p.weight.data != nullptr) {
    load_parameter<T>(p.weight, column, parameter);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] *= parameter[j];
  }
  if (p.bias.data != nullptr) {
    load_parameter<T>(p.bias, column, parameter);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] += parameter[j];
  }
  return Packed<T, kWidth>::pack(x);
}

template <typename T, int kWidth, int kVectors, bool kResidual>
__global__ void __launch_bounds__(kMostThreads, 1)
    norm_forward_kernel(NormForwardParams p, RowGroup group, float one_over_cols) {
  using Vector = Packed<T, kWidth>;
  Shared* shared = shared_memory<Shared>();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index(), start = row * p.cols;
  const int64_t vectors = row < p.rows ? p.cols / kWidth : 0;  // a group without a row comes along to the barriers
  const T* input = static_cast<const T*>(p.input) + start;
  const T* residual = static_cast<const T*>(p.residual) + start;
  T* new_residual = static_cast<T*>(p.new_residual) + start;
  T* output = static_cast<T*>(p.output) + start;
  Vector x[kVectors];  // a row of one chunk stays here; of a longer one, the chunk at hand is here
  const auto read_again = [&](const Chunk& chunk) {
    const T* from = kResidual ? new_residual : input;
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) { x[i] = Vector::load(from + v * kWidth); });
  };

  float sum = 0.0f;
  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    if constexpr (kResidual) {
      const DropoutMask mask(p.dropout);
      Vector r[kVectors];
      group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
        x[i] = Vector::load_once(input + v * kWidth);
        r[i] = Vector::load_once(residual + v * kWidth);
      });
      group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
        x[i] = add(p, mask, start + v * kWidth, v * kWidth, x[i], r[i]);
        x[i].store(new_residual + v * kWidth);
      });
    } else {
      group.for_each<kVectors>(chunk, [&](int i, int64_t v) { x[i] = Vector::load(input + v * kWidth); });
    }
    if (p.rms) continue;
    float part = 0.0f;
    group.for_each<kVectors>(chunk, [&](int i, int64_t) {
      float value[kWidth];
      x[i].unpack(value);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) part += value[j];
    });
    sum += part;
  }
  const float about = p.rms ? 0.0f : group.reduce<Sum>(sum, shared->sum) * one_over_cols;

  float sums[2] = {};  // of the deviations from `about`, and of their squares
  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    if (group.chunks > 1) read_again(chunk);
    float part[2] = {};
    group.for_each<kVectors>(chunk, [&](int i, int64_t) {
      float value[kWidth];
      x[i].unpack(value);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float deviation = value[j] - about;
        part[0] += deviation;
        part[1] = fmaf(deviation, deviation, part[1]);
      }
    });
    sums[0] += part[0];
    sums[1] += part[1];
  }
  group.reduce<Sum>(sums, shared->deviations);
  const float off = p.rms ? 0.0f : sums[0] * one_over_cols, variance = sums[1] * one_over_cols - off * off;
  Normal normal;
  normal.mean = about + off;
  normal.rstd = rsqrtf((variance < 0.0f ? 0.0f : variance) + p.eps);  // not fmaxf, which would lose a NaN
  normal.shift = (normal.mean - about - off) * normal.rstd;

  for (int c = 0; c < group.chunks; ++c) {
    const Chunk chunk = group.chunk<kVectors>(vectors, c);
    if (group.chunks > 1) read_again(chunk);
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
      // Not the parameters of eight single elements at once: with their addresses they do not fit into registers.
      if (kWidth == 1 && i % 4 == 0) asm volatile("" ::: "memory");
      normalize(p, v * kWidth, normal, x[i]).store(output + v * kWidth);
    });
  }
  if (group.lane() == 0 && row < p.rows) {
    if (!p.rms) p.mean[row] = normal.mean;
    p.rstd[row] = normal.rstd;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

// A residual doubles what a thread loads, so it takes half as many vectors of a row.
template <typename T, int kWidth, bool kResidual>
cudaError_t launch_residual(const NormForwardParams& p, cudaStream_t stream) {
  constexpr int kVectors = (kWidth == 1 ? 8 : 4) / (kResidual ? 2 : 1);
  const RowGroup group = RowGroup::of(p.cols / kWidth, kWidth * sizeof(T), kVectors, kMostThreads);
  const dim3 grid(static_cast<unsigned>((p.rows + group.rows_per_block() - 1) / group.rows_per_block()));
  return launch<norm_forward_kernel<T, kWidth, kVectors, kResidual>>(
      {grid, dim3(group.threads()), sizeof(Shared)}, stream, p, group, 1.0f / static_cast<float>(p.cols));
}

template <typename T, int kWidth>
cudaError_t launch_width(const NormForwardParams& p, cudaStream_t stream) {
  return p.residual != nullptr ? launch_residual<T, kWidth, true>(p, stream)
                               : launch_residual<T, kWidth, false>(p, stream);
}

template <typename T>
bool is_wide(const NormForwardParams& p) {
  for (const void* pointer : {p.input, p.weight.data, p.bias.data, static_cast<const void*>(p.output), p.residual,
                              p.input_bias.data, static_cast<const void*>(p.new_residual)}) {
    if (!rows_are_aligned<T>(pointer, p.cols)) return false;
  }
  return true;
}

}  // namespace

cudaError_t norm_forward(const NormForwardParams& params, cudaStream_t stream) {
  if (params.rows == 0) return cudaSuccess;
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return is_wide<T>(params) ? launch_width<T, kWidest<T>>(params, stream) : launch_width<T, 1>(params, stream);
  });
}

}  // namespace fastllm::cuda
