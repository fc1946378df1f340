// gelu and its derivative, element by element.
#include "cuda/gelu.h"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 2;  // two 16-byte loads in flight a thread

constexpr float kTwoOverRootTau = 0.7978845608f;  // sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

__device__ float gelu(float x, bool tanh) {
  if (!tanh) return x * normcdff(x);
  // 0.5 x (1 + tanh u) = x sigmoid(2u)
  const float u = x * kTwoOverRootTau * (1.0f + kCubic * x * x);
  return x / (1.0f + expf(-2.0f * u));
}

__device__ float gelu_derivative(float x, bool tanh) {
  if (!tanh) return normcdff(x) + x * 0.3989422804f * expf(-0.5f * x * x);
  const float u = x * kTwoOverRootTau * (1.0f + kCubic * x * x);
  const float s = 1.0f / (1.0f + expf(-2.0f * u));
  const float two_du = 2.0f * kTwoOverRootTau * (1.0f + 3.0f * kCubic * x * x);
  return s + x * s * (1.0f - s) * two_du;
}

template <typename T, bool kBackward>
__device__ T one_element(T input, T grad_output, bool tanh) {
  const float x = to_float(input);
  return from_float<T>(kBackward ? to_float(grad_output) * gelu_derivative(x, tanh) : gelu(x, tanh));
}

template <typename T, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    gelu_kernel(int64_t count, bool tanh, const T* input, const T* grad_output, T* output) {
  const int64_t whole = count / kWidth * kWidth;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads * kVectorsPerThread + threadIdx.x) * kWidth;
  Pack<T, kWidth> x[kVectorsPerThread], grad[kVectorsPerThread];
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int64_t at = first + i * kThreads * kWidth;
    if (at >= whole) continue;
    x[i] = load<T, kWidth>(input + at);
    if constexpr (kBackward) grad[i] = load<T, kWidth>(grad_output + at);
  }
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int64_t at = first + i * kThreads * kWidth;
    if (at >= whole) continue;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      x[i].value[j] = one_element<T, kBackward>(x[i].value[j], grad[i].value[j], tanh);
    }
    store<T, kWidth>(output + at, x[i]);
  }
  // What does not fill a vector, at most kWidth - 1 elements: the first block's first threads.
  const int64_t rest = whole + threadIdx.x;
  if (blockIdx.x == 0 && rest < count) {
    output[rest] = one_element<T, kBackward>(input[rest], kBackward ? grad_output[rest] : input[rest], tanh);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth, bool kBackward>
cudaError_t launch_width(const GeluParams& p, cudaStream_t stream) {
  constexpr int64_t kElements = static_cast<int64_t>(kThreads) * kVectorsPerThread * kWidth;
  const dim3 grid(static_cast<unsigned>((p.count + kElements - 1) / kElements));
  return launch<gelu_kernel<T, kWidth, kBackward>>({grid, kThreads}, stream, p.count, p.tanh,
                                                   static_cast<const T*>(p.input), static_cast<const T*>(p.grad_output),
                                                   static_cast<T*>(p.output));
}

template <bool kBackward>
cudaError_t launch_dtype(const GeluParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  const bool wide = is_aligned(p.input) && is_aligned(p.grad_output) && is_aligned(p.output);
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return wide ? launch_width<T, kWidest<T>, kBackward>(p, stream) : launch_width<T, 1, kBackward>(p, stream);
  });
}

}  // namespace

cudaError_t gelu_forward(const GeluParams& params, cudaStream_t stream) {
  return launch_dtype<false>(params, stream);
}
cudaError_t gelu_backward(const GeluParams& params, cudaStream_t stream) {
  return launch_dtype<true>(params, stream);
}

}  // namespace fastllm::cuda
