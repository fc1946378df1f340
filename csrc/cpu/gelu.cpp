#include "cpu/gelu.h"

#include <vector>

#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {
namespace {

using at::vec::fmadd;
using VecF = at::vec::Vectorized<float>;
using VecD = at::vec::Vectorized<double>;

constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kInvSqrt2Pi = 0.39894228040143267794;
constexpr double kSqrt2OverPi = 0.79788456080286535588;
constexpr double kCubic = 0.044715;

// ---------------------------------------------------------------------------------------------------------------------
// gelu and its derivative on one vector
// ---------------------------------------------------------------------------------------------------------------------

template <typename V>
struct Normal {
  V cdf, pdf;  // of the standard normal distribution
};

// erf by Abramowitz & Stegun 7.1.26 (absolute error 1.5e-7). With z = |x| / sqrt(2) its e^(-z^2) is sqrt(2 pi) pdf(x),
// so one exponential serves the function and its derivative.
inline Normal<VecF> normal(const VecF& x) {
  const VecF z = x.abs() * VecF(kSqrtHalf);
  const VecF t = VecF(1.0f) / fmadd(z, VecF(0.3275911f), VecF(1.0f));
  const VecF e = vexp_nonpositive(x * x * VecF(-0.5f));
  VecF poly = fmadd(t, VecF(1.061405429f), VecF(-1.453152027f));
  poly = fmadd(poly, t, VecF(1.421413741f));
  poly = fmadd(poly, t, VecF(-0.284496736f));
  poly = fmadd(poly, t, VecF(0.254829592f));
  const VecF tail = poly * t * e * VecF(0.5f);  // P(X > |x|)
  return {VecF::blendv(VecF(1.0f) - tail, tail, x < VecF(0.0f)), e * VecF(kInvSqrt2Pi)};
}

inline Normal<VecD> normal(const VecD& x) {
  return {VecD(0.5) * (VecD(1.0) + (x * VecD(kSqrtHalf)).erf()),
          vexp_nonpositive(x * x * VecD(-0.5)) * VecD(kInvSqrt2Pi)};
}

// The tanh form, 0.5 x (1 + tanh u), is x sigmoid(2u): no tanh, and no cancellation where tanh is near -1.
template <typename V>
inline V sigmoid_2u(const V& x) {
  const V u = x * fmadd(x * x, V(kSqrt2OverPi * kCubic), V(kSqrt2OverPi));
  return V(1.0) / (V(1.0) + vexp(u * V(-2.0)));
}

template <bool kTanh, typename V>
inline V gelu(const V& x) {
  if constexpr (kTanh)
    return x * sigmoid_2u(x);
  else
    return x * normal(x).cdf;
}

template <bool kTanh, typename V>
inline V gelu_derivative(const V& x) {
  if constexpr (kTanh) {
    const V s = sigmoid_2u(x);
    const V two_du = fmadd(x * x, V(6.0 * kSqrt2OverPi * kCubic), V(2.0 * kSqrt2OverPi));
    return fmadd(x * s * (V(1.0) - s), two_du, s);
  } else {
    const Normal<V> n = normal(x);
    return fmadd(x, n.pdf, n.cdf);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, bool kTanh>
void forward(const GeluShape& shape, const T* input, const T* bias, T* output) {
  const RowBlocks blocks = RowBlocks::of_elements(shape.rows(), shape.cols);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* in = input + row * shape.cols;
      T* out = output + row * shape.cols;
      for_each_vec<T>(shape.width(row), [&](int64_t c, auto load, auto store) {
        const Vec<T> x = bias ? load(in + c) + load(bias + c) : load(in + c);
        store(out + c, gelu<kTanh>(x));
      });
    }
  });
}

template <typename T, bool kTanh>
void backward(const GeluShape& shape, const T* grad_output, const T* input, const T* bias, T* grad_input,
              T* grad_bias) {
  using C = Compute<T>;
  const RowBlocks blocks =
      grad_bias ? RowBlocks::for_sums(shape.rows(), shape.cols) : RowBlocks::of_elements(shape.rows(), shape.cols);
  std::vector<C> partials(grad_bias ? blocks.count * shape.cols : 0);
  parallel_for(blocks.count, [&](int64_t block) {
    C* sums = grad_bias ? partials.data() + block * shape.cols : nullptr;
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* grad = grad_output + row * shape.cols;
      const T* in = input + row * shape.cols;
      T* out = grad_input + row * shape.cols;
      for_each_vec<T>(shape.width(row), [&](int64_t c, auto load, auto store) {
        const Vec<T> x = bias ? load(in + c) + load(bias + c) : load(in + c);
        const Vec<T> dx = load(grad + c) * gelu_derivative<kTanh>(x);
        store(out + c, dx);
        if (sums) store(sums + c, load(sums + c) + dx);
      });
    }
  });
  if (grad_bias) sum_partials<T>(partials.data(), blocks.count, shape.cols, grad_bias);
}

}  // namespace

template <typename T>
void gelu_forward(const GeluShape& shape, const T* input, const T* bias, T* output) {
  shape.tanh ? forward<T, true>(shape, input, bias, output) : forward<T, false>(shape, input, bias, output);
}

template <typename T>
void gelu_backward(const GeluShape& shape, const T* grad_output, const T* input, const T* bias, T* grad_input,
                   T* grad_bias) {
  shape.tanh ? backward<T, true>(shape, grad_output, input, bias, grad_input, grad_bias)
             : backward<T, false>(shape, grad_output, input, bias, grad_input, grad_bias);
}

#define INSTANTIATE(T)                                                     \
  template void gelu_forward<T>(const GeluShape&, const T*, const T*, T*); \
  template void gelu_backward<T>(const GeluShape&, const T*, const T*, const T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
