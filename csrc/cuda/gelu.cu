// gelu and its derivative, alone and with a bias added first.
//
// Forward moves 2 elements of memory an element, backward 3, and partial sums of the bias's gradient 8 bytes a group of
// 16 rows or more: 8% at most, which stay in L2. Of arithmetic there are some 20 instructions an element (exact form
// backward: 40), at 2 bytes each a third of what an H100 can issue: memory bounds it, 1.25 us per million elements
// forward in bf16. Blocks: strips.h.
#include "cuda/gelu.h"

#include "cuda/column_sums.h"
#include "cuda/dispatch.h"
#include "cuda/strips.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr float kTwoOverRootTau = 0.7978845608f;  // sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

struct Normal {
  float cdf, pdf;  // of the standard normal distribution
};

// The CPU's formula (cpu/gelu.cpp): one exponential serves both, and 1.5e-7 of error is what float32 holds near 1.
__device__ __forceinline__ Normal normal(float x) {
  const float t = __fdividef(1.0f, 1.0f + 0.3275911f * 0.7071067812f * fabsf(x));
  const float e = expf(-0.5f * x * x);
  const float poly =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * poly * e;  // P(X > |x|)
  return {x < 0.0f ? tail : 1.0f - tail, 0.3989422804f * e};
}

// The tanh form, 0.5 x (1 + tanh u), is x sigmoid(2u). __fdividef takes 2 instructions where an IEEE division takes 10,
// and is 2 units in the last place off at most; its divisors are at least 1, and of infinity it makes 0.
__device__ __forceinline__ float sigmoid_2u(float x) {
  return __fdividef(1.0f, 1.0f + expf(-2.0f * kTwoOverRootTau * x * (1.0f + kCubic * x * x)));
}

template <bool kTanh>
__device__ __forceinline__ float gelu(float x) {
  return x * (kTanh ? sigmoid_2u(x) : normal(x).cdf);
}

template <bool kTanh>
__device__ __forceinline__ float gelu_derivative(float x) {
  if constexpr (kTanh) {
    const float s = sigmoid_2u(x);
    return s + x * s * (1.0f - s) * (2.0f * kTwoOverRootTau) * (1.0f + 3.0f * kCubic * x * x);
  } else {
    const Normal n = normal(x);
    return n.cdf + x * n.pdf;
  }
}

// Returns the output, or backward the gradient, which is added to sums.
template <bool kTanh, bool kBackward, typename T, int kWidth>
__device__ __forceinline__ Packed<T, kWidth> apply(const Packed<T, kWidth>& input, const Packed<T, kWidth>& bias,
                                                   const Packed<T, kWidth>& grad, float (&sums)[kWidth]) {
  float x[kWidth], b[kWidth], d[kWidth];
  input.unpack(x);
  bias.unpack(b);
  grad.unpack(d);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    x[i] += b[i];
    if constexpr (kBackward) {
      x[i] = d[i] * gelu_derivative<kTanh>(x[i]);
      sums[i] += x[i];
    } else {
      x[i] = gelu<kTanh>(x[i]);
    }
  }
  return Packed<T, kWidth>::pack(x);
}

template <typename T, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kStripThreads, 4) gelu_kernel(Strips strips, bool tanh, const T* input, const T* bias,
                                                                const T* grad_output, T* output, float* partials) {
  constexpr int kRows = Strip<T, kWidth>::kRows / (kBackward ? 2 : 1);  // of two arrays, half as many
  const Strip<T, kWidth> strip(strips);
  const Packed<T, kWidth> b = strip.load_columns(bias);
  float sums[kWidth] = {};
  for (int64_t first = strip.begin; first < strip.end; first += kRows * strip.stride) {
    Packed<T, kWidth> x[kRows], grad[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = first + i * strip.stride;
      x[i] = strip.load(input, at);
      if constexpr (kBackward) grad[i] = strip.load(grad_output, at);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = first + i * strip.stride;
      const auto y =
          tanh ? apply<true, kBackward>(x[i], b, grad[i], sums) : apply<false, kBackward>(x[i], b, grad[i], sums);
      if (at < strip.end) y.store(output + at);
    }
  }
  if (partials) strip.write_sums(strips, sums, partials);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

Strips strips_of(const GeluParams& p) {
  const int width = widest_access(p.dtype, p.bias ? p.cols : 0, p.input, p.bias, p.grad_output, p.output);
  return p.bias ? Strips::matrix(p.count / p.cols, p.cols, width, p.grad_bias) : Strips::flat(p.count, width);
}

template <typename T, int kWidth, bool kBackward>
cudaError_t launch_width(const GeluParams& p, const Strips& strips, cudaStream_t stream) {
  return launch<gelu_kernel<T, kWidth, kBackward>>(
      strips.launch(p.grad_bias), stream, strips, p.tanh, static_cast<const T*>(p.input), static_cast<const T*>(p.bias),
      static_cast<const T*>(p.grad_output), static_cast<T*>(p.output), p.partials);
}

template <bool kBackward>
cudaError_t launch_dtype(const GeluParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  const Strips strips = strips_of(p);
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return in_strips(
        p.count, strips, [&](const Strips& whole) { return launch_width<T, kWidest<T>, kBackward>(p, whole, stream); },
        [&](const Strips& narrow) { return launch_width<T, 1, kBackward>(p, narrow, stream); });
  });
}

}  // namespace

int64_t gelu_groups(const GeluParams& params) {
  return params.count == 0 ? 0 : strips_of(params).groups;
}

cudaError_t gelu_forward(const GeluParams& params, cudaStream_t stream) {
  return launch_dtype<false>(params, stream);
}

cudaError_t gelu_backward(const GeluParams& params, cudaStream_t stream) {
  const cudaError_t error = launch_dtype<true>(params, stream);
  if (error != cudaSuccess || !params.grad_bias) return error;
  return column_sums(gelu_groups(params), params.cols, {params.partials, params.grad_bias, params.dtype}, {}, {},
                     stream);
}

}  // namespace fastllm::cuda
