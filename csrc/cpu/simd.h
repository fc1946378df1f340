// SIMD for the CPU kernels, written once over at::vec for AVX2, AVX-512, NEON and plain C++.
//
// A kernel loads any dtype as its compute type, computes, stores: fp32, bf16 and fp16 compute in fp32, fp64 in fp64.
// So one body serves all four dtypes.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace fastllm {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// The type a kernel computes in when its tensors hold T.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A vector of T's compute type.
template <typename T>
using Vec = at::vec::Vectorized<Compute<T>>;

// How many elements of T a Vec<T> holds.
template <typename T>
constexpr int64_t kLanes = Vec<T>::size();

template <typename T>
inline Vec<T> vload(const T* p) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    return Vec<T>::loadu(p);
  } else {
    Vec<T> v;
    if constexpr (std::is_same_v<T, BFloat16>) {
      at::vec::load_fp32_from_bf16(p, v);
    } else {
      at::vec::load_fp32_from_fp16(p, v);
    }
    return v;
  }
}

template <typename T>
inline void vstore(T* p, const Vec<T>& v) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    v.store(p);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    const auto narrow = [&] {
      if constexpr (std::is_same_v<T, BFloat16>)
        return at::vec::convert_float_bfloat16(v, v);
      else
        return at::vec::convert_float_half(v, v);
    }();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(narrow));
#elif defined(CPU_CAPABILITY_AVX2)
    const auto narrow = [&] {
      if constexpr (std::is_same_v<T, BFloat16>)
        return at::vec::convert_float_bfloat16(v, v);
      else
        return at::vec::convert_float_half(v, v);
    }();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(narrow));
#else
    float lanes[kLanes<T>];
    v.store(lanes);
    for (int64_t i = 0; i < kLanes<T>; ++i) p[i] = static_cast<T>(lanes[i]);
#endif
  }
}

// The first `count` elements, 0 <= count <= kLanes; the rest of the vector is `fill`.
template <typename T>
inline Vec<T> vload_part(const T* p, int64_t count, Compute<T> fill = 0) {
  Compute<T> lanes[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) lanes[i] = i < count ? static_cast<Compute<T>>(p[i]) : fill;
  return Vec<T>::loadu(lanes);
}

template <typename T>
inline void vstore_part(T* p, const Vec<T>& v, int64_t count) {
  Compute<T> lanes[kLanes<T>];
  v.store(lanes);
  for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(lanes[i]);
}

// Calls body(i, load, store) for i = 0, kLanes, 2 kLanes, .. < n. `load(p)` and `store(p, v)` touch whole vectors but
// in the last, partial step, where they touch what is left and loaded lanes past the end are `fill`.
template <typename T, typename Body>
inline void for_each_vec(int64_t n, Body&& body, Compute<T> fill = 0) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    body(i, [](const auto* p) { return vload(p); }, [](auto* p, const Vec<T>& v) { vstore(p, v); });
  }
  if (i < n) {
    const int64_t count = n - i;
    body(
        i, [count, fill](const auto* p) { return vload_part(p, count, fill); },
        [count](auto* p, const Vec<T>& v) { vstore_part(p, v, count); });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reductions over a vector's lanes, in one fixed order
// ---------------------------------------------------------------------------------------------------------------------

// `op` takes two scalars and two vectors.
template <typename C, typename Op>
inline C reduce_lanes(const at::vec::Vectorized<C>& v, const Op& op) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<C, float>) {  // in registers: through memory each halving would wait for a store
    using V = at::vec::Vectorized<float>;
    V x = v;
#if defined(CPU_CAPABILITY_AVX512)
    x = op(x, V(_mm512_shuffle_f32x4(x, x, 0x4E)));
    x = op(x, V(_mm512_shuffle_f32x4(x, x, 0xB1)));
    x = op(x, V(_mm512_permute_ps(x, 0x4E)));
    x = op(x, V(_mm512_permute_ps(x, 0xB1)));
    return _mm512_cvtss_f32(x);
#else
    x = op(x, V(_mm256_permute2f128_ps(x, x, 1)));
    x = op(x, V(_mm256_permute_ps(x, 0x4E)));
    x = op(x, V(_mm256_permute_ps(x, 0xB1)));
    return _mm256_cvtss_f32(x);
#endif
  }
#endif
  constexpr int64_t n = at::vec::Vectorized<C>::size();
  C lanes[n];
  v.store(lanes);
  for (int64_t half = n / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] = op(lanes[i], lanes[i + half]);
  return lanes[0];
}

template <typename C>
inline C sum_lanes(const at::vec::Vectorized<C>& v) {
  return reduce_lanes(v, [](const auto& a, const auto& b) { return a + b; });
}

// Sums over a row: body(i, load, store, sums) adds to the vectors sums[0], .. what the elements at i come to, as a body
// of for_each_vec. Vectors take 128 additions at most, and these sums are added in double: one running sum of a row of
// ten millions would be 1e-4 off, as what is added is small beside it.
template <typename T, int kSums, typename Body>
inline std::array<double, kSums> sum_row(int64_t n, Body&& body, Compute<T> fill = 0) {
  constexpr int64_t kBlock = 128 * kLanes<T>;
  std::array<double, kSums> totals{};
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    std::array<Vec<T>, kSums> sums;
    sums.fill(Vec<T>(Compute<T>(0)));
    for_each_vec<T>(
        std::min(kBlock, n - begin), [&](int64_t i, auto load, auto store) { body(begin + i, load, store, sums); },
        fill);
    for (int k = 0; k < kSums; ++k) totals[k] += sum_lanes(sums[k]);
  }
  return totals;
}

struct MaximumOrNan {  // NaN wins, as in torch
  template <typename C>
  C operator()(C a, C b) const {
    return (a > b || a != a) ? a : b;
  }
  template <typename C>
  at::vec::Vectorized<C> operator()(const at::vec::Vectorized<C>& a, const at::vec::Vectorized<C>& b) const {
    return at::vec::maximum(a, b);
  }
};

template <typename C>
inline C max_lanes(const at::vec::Vectorized<C>& v) {
  return reduce_lanes(v, MaximumOrNan{});
}

// ---------------------------------------------------------------------------------------------------------------------
// Functions
// ---------------------------------------------------------------------------------------------------------------------

// x = n ln2 + r with |r| <= ln2 / 2; e^r by a polynomial of degree 6 (remainder r^7 / 7! < 1.2e-7 relative at the ends
// of Taylor's form; the coefficients are a minimax fit, so less); 2^n is for the caller.
struct ExpParts {
  at::vec::Vectorized<float> n, e_r;
};

C10_ALWAYS_INLINE ExpParts exp_parts(const at::vec::Vectorized<float>& x) {
  using V = at::vec::Vectorized<float>;
  const V n = (x * V(1.44269504f)).round();
  V r = at::vec::fmadd(n, V(-0.693359375f), x);
  r = at::vec::fmadd(n, V(2.12194440e-4f), r);
  V e = at::vec::fmadd(r, V(1.9875691500e-4f), V(1.3981999507e-3f));  // Cephes expf
  e = at::vec::fmadd(e, r, V(8.3334519073e-3f));
  e = at::vec::fmadd(e, r, V(4.1665795894e-2f));
  e = at::vec::fmadd(e, r, V(1.6666665459e-1f));
  e = at::vec::fmadd(e, r, V(5.0000001201e-1f));
  return {n, at::vec::fmadd(e, r * r, r + V(1.0f))};
}

// 2^n for a whole n in [-126, 127], by writing it into the exponent bits; n = -127 gives exactly 0.
C10_ALWAYS_INLINE at::vec::Vectorized<float> power_of_2(const at::vec::Vectorized<float>& n) {
  using VI = at::vec::Vectorized<int32_t>;
  return at::vec::cast<float, int32_t>((at::vec::convert_to_int_of_same_size(n) + VI(127)) << VI(23));
}

// e^x to about 1 ulp; 0 below -86.99 (a result under 1.7e-38), +inf above 88.72, NaN stays NaN.
C10_ALWAYS_INLINE at::vec::Vectorized<float> vexp(const at::vec::Vectorized<float>& x) {
  using V = at::vec::Vectorized<float>;
  // Bounds, which keep a NaN, and no selections: on a Xeon these took four times as long as all the rest.
  const auto [n, e_r] = exp_parts(at::vec::clamp_max(at::vec::clamp_min(x, V(-87.3f)), V(89.0f)));
  // n reaches 128 at the top end, one more than an exponent holds: scale by 2^(n-1), then by 2. At the low end n - 1 is
  // -127, which gives 0 and no denormals: each of those would cost as much as a hundred multiply-adds.
  return e_r * power_of_2(n - V(1.0f)) * V(2.0f);
}

// The same where x <= 0 is known, as in every softmax; rounding may take x a little above. 0 below -87.68.
C10_ALWAYS_INLINE at::vec::Vectorized<float> vexp_nonpositive(const at::vec::Vectorized<float>& x) {
  using V = at::vec::Vectorized<float>;
  const auto [n, e_r] = exp_parts(at::vec::clamp_min(x, V(-88.0f)));  // to n = -127; keeps a NaN
  return e_r * power_of_2(n);
}

C10_ALWAYS_INLINE at::vec::Vectorized<double> vexp(const at::vec::Vectorized<double>& x) {
  return x.exp();
}

C10_ALWAYS_INLINE at::vec::Vectorized<double> vexp_nonpositive(const at::vec::Vectorized<double>& x) {
  return x.exp();
}

}  // namespace fastllm
