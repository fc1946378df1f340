// relu with a bias added before and dropout after, and its backward, which needs the output alone.
//
// Forward moves 2 elements of memory an element, backward 3, and partial sums of the bias's gradient 8 bytes a group of
// 16 rows or more, which stay in L2. Backward's arithmetic is nothing beside that; forward's is dropout's 15 to 25
// instructions an element (dropout_add.cu), so memory bounds both: 1.25 us per million elements forward on an H100 in
// bf16. Where a bias is no multiple of an access long each element takes a Philox block of its own, as it does for
// dropout_add's gradients. Blocks: strips.h.
#include "cuda/bias_relu.h"

#include "cuda/column_sums.h"
#include "cuda/dispatch.h"
#include "cuda/strips.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

// As in dropout_add_kernel the next row's input is under way while this one's Philox rounds run.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kStripThreads, 4)
    bias_relu_kernel(Strips strips, Dropout dropout, const T* input, const T* bias, T* output) {
  const Strip<T, kWidth> strip(strips);
  const DropoutMask mask(dropout);
  float b[kWidth];
  strip.load_columns(bias).unpack(b);
  Packed<T, kWidth> packed_x = strip.load(input, strip.begin);
#pragma unroll 1
  for (int64_t at = strip.begin; at < strip.end; at += strip.stride) {
    const Packed<T, kWidth> next_x = strip.load(input, at + strip.stride);
    float x[kWidth], factor[kWidth];
    mask.factors<kWidth>(at, factor);
    packed_x.unpack(x);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x[i] += b[i];
      x[i] = (x[i] <= 0.0f ? 0.0f : x[i]) * factor[i];  // fmaxf would lose a NaN
    }
    Packed<T, kWidth>::pack(x).store(output + at);
    packed_x = next_x;
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kStripThreads, 4)
    bias_relu_backward_kernel(Strips strips, float scale, const T* grad_output, const T* output, T* grad_input,
                              float* partials) {
  constexpr int kRows = Strip<T, kWidth>::kRows / 2;  // of two arrays, half as many
  const Strip<T, kWidth> strip(strips);
  float sums[kWidth] = {};
  for (int64_t first = strip.begin; first < strip.end; first += kRows * strip.stride) {
    Packed<T, kWidth> grad[kRows], y[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = first + i * strip.stride;
      grad[i] = strip.load(grad_output, at);
      y[i] = strip.load(output, at);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = first + i * strip.stride;
      float d[kWidth], out[kWidth];
      grad[i].unpack(d);
      y[i].unpack(out);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        d[j] = out[j] <= 0.0f ? 0.0f : d[j] * scale;
        sums[j] += d[j];
      }
      if (at < strip.end) Packed<T, kWidth>::pack(d).store(grad_input + at);
    }
  }
  if (partials) strip.write_sums(strips, sums, partials);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

Strips strips_of(const BiasReluParams& p) {
  const int width = widest_access(p.dtype, p.bias ? p.cols : 0, p.input, p.bias, p.output);
  return p.bias ? Strips::matrix(p.count / p.cols, p.cols, width, false) : Strips::flat(p.count, width);
}

Strips strips_of(const BiasReluBackwardParams& p) {
  const int width = widest_access(p.dtype, p.grad_bias ? p.cols : 0, p.grad_output, p.output, p.grad_input);
  return p.grad_bias ? Strips::matrix(p.count / p.cols, p.cols, width, true) : Strips::flat(p.count, width);
}

template <typename T, int kWidth>
cudaError_t launch_width(const BiasReluParams& p, const Strips& strips, cudaStream_t stream) {
  return launch<bias_relu_kernel<T, kWidth>>(strips.launch(), stream, strips, p.dropout, static_cast<const T*>(p.input),
                                             static_cast<const T*>(p.bias), static_cast<T*>(p.output));
}

template <typename T, int kWidth>
cudaError_t launch_width(const BiasReluBackwardParams& p, const Strips& strips, cudaStream_t stream) {
  return launch<bias_relu_backward_kernel<T, kWidth>>(
      strips.launch(p.grad_bias), stream, strips, p.scale, static_cast<const T*>(p.grad_output),
      static_cast<const T*>(p.output), static_cast<T*>(p.grad_input), p.partials);
}

template <typename Params>
cudaError_t launch_dtype(const Params& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  const Strips strips = strips_of(p);
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return in_strips(
        p.count, strips, [&](const Strips& whole) { return launch_width<T, kWidest<T>>(p, whole, stream); },
        [&](const Strips& narrow) { return launch_width<T, 1>(p, narrow, stream); });
  });
}

}  // namespace

cudaError_t bias_relu_forward(const BiasReluParams& params, cudaStream_t stream) {
  return launch_dtype(params, stream);
}

int64_t bias_relu_groups(const BiasReluBackwardParams& params) {
  return params.count == 0 ? 0 : strips_of(params).groups;
}

cudaError_t bias_relu_backward(const BiasReluBackwardParams& params, cudaStream_t stream) {
  const cudaError_t error = launch_dtype(params, stream);
  if (error != cudaSuccess || !params.grad_bias) return error;
  return column_sums(bias_relu_groups(params), params.cols, {params.partials, params.grad_bias, params.dtype}, {}, {},
                     stream);
}

}  // namespace fastllm::cuda
