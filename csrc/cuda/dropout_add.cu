// Dropout with the additions around it, forward and backward.
//
// dropout moves 2 elements of memory an element, dropout_add 3. A Philox block is some 70 instructions for the 8
// elements of a 16-byte access in 16-bit dtypes and for 4 in float32: 15 to 25 an element with what else there is,
// about a third of what an H100 can issue at 3.35 TB/s. So memory bounds it: 1.25 us per million elements of dropout in
// bf16. Where accesses must be narrow each element takes a block of its own, and arithmetic bounds it: 3 times slower
// in bf16. Forward goes through the array without regard to rows to avoid that, where a bias is no multiple of an
// access long, and takes the bias element by element, from L1. Blocks: strips.h.
#include "cuda/dropout_add.h"

#include "cuda/column_sums.h"
#include "cuda/dispatch.h"
#include "cuda/strips.h"

namespace fastllm::cuda {
namespace {

// A bias of the strip's columns, or one of `period` elements that is repeated without regard to them.
template <typename T>
struct Bias {
  const T* data;
  unsigned period;

  // What belongs to elements at, at + 1, ..
  template <int kWidth>
  __device__ __forceinline__ Packed<T, kWidth> repeated(int64_t at) const {
    unsigned column = static_cast<unsigned>(at % period);
    float value[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      value[i] = to_float(data[column]);
      if (++column == period) column = 0;
    }
    return Packed<T, kWidth>::pack(value);
  }
};

// The next row's input is under way while this one's Philox rounds run: loads of two rows in flight, but registers for
// the rounds of one.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kStripThreads, 4)
    dropout_add_kernel(Strips strips, Dropout dropout, const T* input, Bias<T> bias, const T* residual, T* output,
                       float* partials) {
  const Strip<T, kWidth> strip(strips);
  const DropoutMask mask(dropout);
  Packed<T, kWidth> packed_bias = strip.load_columns(bias.period ? nullptr : bias.data);
  float sums[kWidth] = {};
  Packed<T, kWidth> packed_x = strip.load(input, strip.begin);
#pragma unroll 1
  for (int64_t at = strip.begin; at < strip.end; at += strip.stride) {
    const Packed<T, kWidth> packed_r = strip.load_if(residual != nullptr, residual + at);
    const Packed<T, kWidth> next_x = strip.load(input, at + strip.stride);
    if (bias.period) packed_bias = bias.template repeated<kWidth>(at);
    float x[kWidth], b[kWidth], r[kWidth], factor[kWidth];
    mask.factors<kWidth>(at, factor);
    packed_x.unpack(x);
    packed_bias.unpack(b);
    packed_r.unpack(r);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x[i] = (x[i] + b[i]) * factor[i];
      sums[i] += x[i];
      x[i] += r[i];
    }
    Packed<T, kWidth>::pack(x).store(output + at);
    packed_x = next_x;
  }
  if (partials) strip.write_sums(strips, sums, partials);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

bool has_columns(const DropoutAddParams& p) {
  return p.grad_bias || (p.bias && widest_access(p.dtype, p.cols, p.bias) > 1);
}

Strips strips_of(const DropoutAddParams& p) {
  const bool columns = has_columns(p);
  const int width = widest_access(p.dtype, columns ? p.cols : 0, p.input, p.residual, p.output);
  return columns ? Strips::matrix(p.count / p.cols, p.cols, width, p.grad_bias) : Strips::flat(p.count, width);
}

template <typename T, int kWidth>
cudaError_t launch_width(const DropoutAddParams& p, const Strips& strips, cudaStream_t stream) {
  return launch<dropout_add_kernel<T, kWidth>>(
      strips.launch(p.grad_bias), stream, strips, p.dropout, static_cast<const T*>(p.input),
      Bias<T>{static_cast<const T*>(p.bias), p.bias && !has_columns(p) ? static_cast<unsigned>(p.cols) : 0},
      static_cast<const T*>(p.residual), static_cast<T*>(p.output), p.partials);
}

}  // namespace

int64_t dropout_add_groups(const DropoutAddParams& params) {
  return params.count == 0 ? 0 : strips_of(params).groups;
}

cudaError_t dropout_add(const DropoutAddParams& params, cudaStream_t stream) {
  if (params.count > 0) {
    const Strips strips = strips_of(params);
    const cudaError_t error = dispatch(params.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      return in_strips(
          params.count, strips, [&](const Strips& whole) { return launch_width<T, kWidest<T>>(params, whole, stream); },
          [&](const Strips& narrow) { return launch_width<T, 1>(params, narrow, stream); });
    });
    if (error != cudaSuccess) return error;
  }
  return column_sums(dropout_add_groups(params), params.cols, {params.partials, params.grad_bias, params.dtype}, {}, {},
                     stream);
}

}  // namespace fastllm::cuda
