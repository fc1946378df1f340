#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/gelu.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 2;  // two 16-byte loads in flight a thread

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T value[kWidth];
};

template <bool kTanh>
__device__ float gelu(float x) {
  if constexpr (kTanh) {
    // 0.5 x (1 + tanh u) = x sigmoid(2u)
    const float u = x * (0.7978845608f + 0.7978845608f * 0.044715f * x * x);
    return x / (1.0f + expf(-2.0f * u));
  } else {
    return x * normcdff(x);
  }
}

template <bool kTanh>
__device__ float gelu_derivative(float x) {
  if constexpr (kTanh) {
    const float u = x * (0.7978845608f + 0.7978845608f * 0.044715f * x * x);
    const float s = 1.0f / (1.0f + expf(-2.0f * u));
    const float two_du = 2.0f * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
    return s + x * s * (1.0f - s) * two_du;
  } else {
    return normcdff(x) + x * 0.3989422804f * expf(-0.5f * x * x);
  }
}

template <typename T, int kWidth, bool kTanh, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    gelu_kernel(int64_t count, const T* input, const T* grad_output, T* output) {
  using Vector = Pack<T, kWidth>;
  const int64_t vectors = count / kWidth;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kVectorsPerThread + threadIdx.x;
  Vector x[kVectorsPerThread], grad[kVectorsPerThread];
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= vectors) continue;
    x[i] = reinterpret_cast<const Vector*>(input)[at];
    if constexpr (kBackward) grad[i] = reinterpret_cast<const Vector*>(grad_output)[at];
  }
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= vectors) continue;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float value = static_cast<float>(x[i].value[j]);
      if constexpr (kBackward) {
        x[i].value[j] = static_cast<T>(static_cast<float>(grad[i].value[j]) * gelu_derivative<kTanh>(value));
      } else {
        x[i].value[j] = static_cast<T>(gelu<kTanh>(value));
      }
    }
    reinterpret_cast<Vector*>(output)[at] = x[i];
  }
  // What does not fill a vector, at most kWidth - 1 elements: the first block's first threads.
  const int64_t rest = vectors * kWidth + threadIdx.x;
  if (blockIdx.x == 0 && rest < count) {
    const float value = static_cast<float>(input[rest]);
    if constexpr (kBackward) {
      output[rest] = static_cast<T>(static_cast<float>(grad_output[rest]) * gelu_derivative<kTanh>(value));
    } else {
      output[rest] = static_cast<T>(gelu<kTanh>(value));
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <typename T, int kWidth, bool kBackward>
cudaError_t launch_width(const GeluParams& p, cudaStream_t stream) {
  constexpr int64_t kElements = static_cast<int64_t>(kThreads) * kVectorsPerThread * kWidth;
  const dim3 grid(static_cast<unsigned>((p.count + kElements - 1) / kElements));
  const auto kernel = p.tanh ? gelu_kernel<T, kWidth, true, kBackward> : gelu_kernel<T, kWidth, false, kBackward>;
  kernel<<<grid, kThreads, 0, stream>>>(p.count, static_cast<const T*>(p.input), static_cast<const T*>(p.grad_output),
                                        static_cast<T*>(p.output));
  return cudaGetLastError();
}

template <typename T, bool kBackward>
cudaError_t launch_dtype(const GeluParams& p, cudaStream_t stream) {
  const bool wide = aligned(p.input) && aligned(p.grad_output) && aligned(p.output);
  return wide ? launch_width<T, 16 / sizeof(T), kBackward>(p, stream) : launch_width<T, 1, kBackward>(p, stream);
}

template <bool kBackward>
cudaError_t launch(const GeluParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_dtype<float, kBackward>(p, stream);
    case DType::kBFloat16:
      return launch_dtype<__nv_bfloat16, kBackward>(p, stream);
    case DType::kFloat16:
      return launch_dtype<__half, kBackward>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t gelu_forward(const GeluParams& params, cudaStream_t stream) {
  return launch<false>(params, stream);
}
cudaError_t gelu_backward(const GeluParams& params, cudaStream_t stream) {
  return launch<true>(params, stream);
}

}  // namespace fastllm::cuda
