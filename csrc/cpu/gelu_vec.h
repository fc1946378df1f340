// GELU (Hendrycks & Gimpel, 2016) and its derivative on one vector.
#pragma once

#include "cpu/simd.h"

namespace fastllm {
namespace gelu_vec {

using at::vec::fmadd;
using VecF = at::vec::Vectorized<float>;
using VecD = at::vec::Vectorized<double>;

constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kInvSqrt2Pi = 0.39894228040143267794;
constexpr double kSqrt2OverPi = 0.79788456080286535588;
constexpr double kCubic = 0.044715;

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

}  // namespace gelu_vec

template <typename V>
struct ValueAndSlope {
  V value, slope;
};

// The tanh form, 0.5 x (1 + tanh u), is x sigmoid(2u): no tanh, and no cancellation where tanh is near -1.
template <bool kTanh, typename V>
inline ValueAndSlope<V> gelu_and_slope(const V& x) {
  using namespace gelu_vec;
  if constexpr (kTanh) {
    const V u = x * fmadd(x * x, V(kSqrt2OverPi * kCubic), V(kSqrt2OverPi));
    const V s = V(1.0) / (V(1.0) + vexp(u * V(-2.0)));
    const V two_du = fmadd(x * x, V(6.0 * kSqrt2OverPi * kCubic), V(2.0 * kSqrt2OverPi));
    return {x * s, fmadd(x * s * (V(1.0) - s), two_du, s)};
  } else {
    const Normal<V> n = normal(x);
    return {x * n.cdf, fmadd(x, n.pdf, n.cdf)};
  }
}

}  // namespace fastllm
