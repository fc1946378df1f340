// swiglu and its gradients.
//
// Forward moves 3 elements of memory an element of output, backward 5; some 15 and 25 instructions of arithmetic each
// are a fifth of what an H100 can issue meanwhile, so memory bounds it: 1.9 us per million elements of output forward
// in bf16. Contiguous arrays are cut without regard to rows, others by rows: strips.h.
#include "cuda/swiglu.h"

#include "cuda/dispatch.h"
#include "cuda/strips.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

// Rows of an array that need not follow each other.
template <typename T>
struct StridedRows {
  T* data;
  int64_t stride;

  template <int kWidth>
  __device__ __forceinline__ T* at(const Strips& strips, const Strip<std::remove_const_t<T>, kWidth>& strip,
                                   int64_t row) const {
    return data + strips.origin + row * stride + strip.column;
  }
};

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + expf(-x));  // as in gelu.cu
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kStripThreads, 4)
    forward_kernel(Strips strips, StridedRows<const T> gate, StridedRows<const T> up, T* output) {
  constexpr int kRows = Strip<T, kWidth>::kRows;
  const Strip<T, kWidth> strip(strips);
  Packed<T, kWidth> packed_g[kRows], packed_u[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool there = strip.begin + i * strip.stride < strip.end;
    const int64_t row = strip.row + i * blockDim.y;
    packed_g[i] = strip.load_if(there, gate.at(strips, strip, row));
    packed_u[i] = strip.load_if(there, up.at(strips, strip, row));
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t at = strip.begin + i * strip.stride;
    if (at >= strip.end) break;
    float g[kWidth], u[kWidth];
    packed_g[i].unpack(g);
    packed_u[i].unpack(u);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) g[j] *= sigmoid(g[j]) * u[j];
    Packed<T, kWidth>::pack(g).store(output + at);
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kStripThreads, 4)
    backward_kernel(Strips strips, StridedRows<const T> gate, StridedRows<const T> up, const T* grad_output,
                    StridedRows<T> grad_gate, StridedRows<T> grad_up) {
  constexpr int kRows = Strip<T, kWidth>::kRows;
  const Strip<T, kWidth> strip(strips);
  Packed<T, kWidth> packed_g[kRows], packed_u[kRows], packed_d[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t at = strip.begin + i * strip.stride, row = strip.row + i * blockDim.y;
    packed_g[i] = strip.load_if(at < strip.end, gate.at(strips, strip, row));
    packed_u[i] = strip.load_if(at < strip.end, up.at(strips, strip, row));
    packed_d[i] = strip.load(grad_output, at);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (strip.begin + i * strip.stride >= strip.end) break;
    const int64_t row = strip.row + i * blockDim.y;
    float g[kWidth], u[kWidth], d[kWidth];
    packed_g[i].unpack(g);
    packed_u[i].unpack(u);
    packed_d[i].unpack(d);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float s = sigmoid(g[j]), slope = s * (1.0f + g[j] * (1.0f - s));
      u[j] *= d[j] * slope;
      g[j] *= d[j] * s;
    }
    Packed<T, kWidth>::pack(u).store(grad_gate.at(strips, strip, row));
    Packed<T, kWidth>::pack(g).store(grad_up.at(strips, strip, row));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

bool is_contiguous(const SwigluParams& p) {
  return p.gate_stride == p.cols && p.up_stride == p.cols && (!p.grad_output || p.grad_stride == p.cols);
}

Strips strips_of(const SwigluParams& p) {
  const auto access = [&](int64_t cols) {
    return widest_access(p.dtype, cols, p.gate, p.up, p.output, p.grad_output, p.grad_gate, p.grad_up);
  };
  if (is_contiguous(p)) return Strips::flat(p.rows * p.cols, access(0));
  const int64_t all_even = p.cols | p.gate_stride | p.up_stride | p.grad_stride;  // a multiple of what all are
  return Strips::matrix(p.rows, p.cols, access(all_even), false);
}

template <typename T, int kWidth, bool kBackward>
cudaError_t launch_width(const SwigluParams& p, const Strips& strips, cudaStream_t stream) {
  const bool flat = is_contiguous(p);
  const auto rows = [&](auto* data, int64_t stride) {
    return StridedRows<std::remove_pointer_t<decltype(data)>>{data, flat ? strips.cols : stride};
  };
  const auto gate = rows(static_cast<const T*>(p.gate), p.gate_stride);
  const auto up = rows(static_cast<const T*>(p.up), p.up_stride);
  if constexpr (kBackward) {
    return launch<backward_kernel<T, kWidth>>(
        strips.launch(), stream, strips, gate, up, static_cast<const T*>(p.grad_output),
        rows(static_cast<T*>(p.grad_gate), p.grad_stride), rows(static_cast<T*>(p.grad_up), p.grad_stride));
  } else {
    return launch<forward_kernel<T, kWidth>>(strips.launch(), stream, strips, gate, up, static_cast<T*>(p.output));
  }
}

template <bool kBackward>
cudaError_t launch_dtype(const SwigluParams& p, cudaStream_t stream) {
  if (p.rows * p.cols == 0) return cudaSuccess;
  const Strips strips = strips_of(p);
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return in_strips(
        p.rows * p.cols, strips,
        [&](const Strips& whole) { return launch_width<T, kWidest<T>, kBackward>(p, whole, stream); },
        [&](const Strips& narrow) { return launch_width<T, 1, kBackward>(p, narrow, stream); });
  });
}

}  // namespace

cudaError_t swiglu_forward(const SwigluParams& params, cudaStream_t stream) {
  return launch_dtype<false>(params, stream);
}
cudaError_t swiglu_backward(const SwigluParams& params, cudaStream_t stream) {
  return launch_dtype<true>(params, stream);
}

}  // namespace fastllm::cuda
