// Stands in for the toolkit's cuda_fp16.h: __half with exact conversions, rounding to nearest even.
#pragma once

#include "cuda_runtime.h"
#include "emulator/narrow_float.h"

struct __half : emulator::NarrowFloat<__half, emulator::half_bits, emulator::half_value> {
  using NarrowFloat::NarrowFloat;
};
using half = __half;

struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline __half __float2half(float x) {
  return __half(x);
}
inline __half __float2half_rn(float x) {
  return __half(x);
}
inline float __half2float(__half x) {
  return float(x);
}
inline __half2 __float2half2_rn(float x) {
  return {__half(x), __half(x)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline __half2 __float22half2_rn(float2 x) {
  return {__half(x.x), __half(x.y)};
}
inline float2 __half22float2(__half2 x) {
  return {float(x.x), float(x.y)};
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline __half __low2half(__half2 x) {
  return x.x;
}
inline __half __high2half(__half2 x) {
  return x.y;
}
inline uint16_t __half_as_ushort(__half x) {
  return x.bits;
}
inline __half __ushort_as_half(uint16_t bits) {
  return __half::from_bits(bits);
}
