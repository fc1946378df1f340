// Stands in for the toolkit's cuda_bf16.h: __nv_bfloat16 with exact conversions, rounding to nearest even.
#pragma once

#include "cuda_runtime.h"
#include "emulator/narrow_float.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits(emulator::bfloat16_bits(x)) {}
  explicit __nv_bfloat16(double x) : __nv_bfloat16(static_cast<float>(x)) {}
  explicit __nv_bfloat16(int x) : __nv_bfloat16(static_cast<float>(x)) {}
  operator float() const { return emulator::bfloat16_value(bits); }
  __nv_bfloat16& operator=(float x) { return *this = __nv_bfloat16(x); }

  static __nv_bfloat16 from_bits(uint16_t bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
  }
};
using nv_bfloat16 = __nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat162 = __nv_bfloat162;

// As on the device, arithmetic rounds to the narrow type at each step.
#define EMULATOR_NARROW(op)                                            \
  inline __nv_bfloat16 operator op(__nv_bfloat16 a, __nv_bfloat16 b) { \
    return __nv_bfloat16(float(a) op float(b));                        \
  }
EMULATOR_NARROW(+)
EMULATOR_NARROW(-)
EMULATOR_NARROW(*)
EMULATOR_NARROW(/)
#undef EMULATOR_NARROW
inline __nv_bfloat16 operator-(__nv_bfloat16 a) {
  return __nv_bfloat16::from_bits(a.bits ^ 0x8000);
}

inline __nv_bfloat16 __float2bfloat16(float x) {
  return __nv_bfloat16(x);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return __nv_bfloat16(x);
}
inline float __bfloat162float(__nv_bfloat16 x) {
  return float(x);
}
inline __nv_bfloat162 __float2bfloat162_rn(float x) {
  return {__nv_bfloat16(x), __nv_bfloat16(x)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) {
  return {__nv_bfloat16(x.x), __nv_bfloat16(x.y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 x) {
  return {float(x.x), float(x.y)};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) {
  return x.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) {
  return x.y;
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  return __nv_bfloat16::from_bits(bits);
}
