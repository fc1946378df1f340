// bfloat16 and float16: as bits (to nearest, ties to even, with subnormals, infinities and the device's NaN), and what
// cuda_bf16.h and cuda_fp16.h have in common.
#pragma once

#include <cstdint>

namespace emulator {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_value(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint16_t kDeviceNaN = 0x7FFF;  // what cvt.rn gives for any NaN, in both types

inline uint16_t bfloat16_bits(float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return kDeviceNaN;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // a carry goes on into the exponent
}

inline float bfloat16_value(uint16_t bits) {
  return float_value(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t half_bits(float x) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7FFFFFFF;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (x != x) return kDeviceNaN;
  if (magnitude >= 0x47800000) return sign | 0x7C00;  // 65536 and more; from 65520 on, a carry below gives infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14: adding 1/2 puts a unit of 2^-24 into float's last place, and the addition rounds.
    return sign | static_cast<uint16_t>(float_bits(float_value(magnitude) + 0.5f) - float_bits(0.5f));
  }
  const uint32_t rebiased = magnitude - (112u << 23);
  return sign | static_cast<uint16_t>((rebiased + 0xFFF + (rebiased >> 13 & 1)) >> 13);
}

inline float half_value(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7FFF;
  if (magnitude >= 0x7C00) return float_value(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  if (magnitude >= 0x400) return float_value(sign | ((magnitude << 13) + (112u << 23)));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -value : value;
}

// The arithmetic of Type, a 16-bit number that is converted so. As on the device, it rounds at each step.
template <typename Type, uint16_t (*to_bits)(float), float (*to_value)(uint16_t)>
struct NarrowFloat {
  uint16_t bits;

  NarrowFloat() = default;
  NarrowFloat(float x) : bits(to_bits(x)) {}
  explicit NarrowFloat(double x) : NarrowFloat(static_cast<float>(x)) {}
  explicit NarrowFloat(int x) : NarrowFloat(static_cast<float>(x)) {}
  operator float() const { return to_value(bits); }

  static Type from_bits(uint16_t bits) {
    Type x;
    x.bits = bits;
    return x;
  }

  friend Type operator+(Type a, Type b) { return Type(float(a) + float(b)); }
  friend Type operator-(Type a, Type b) { return Type(float(a) - float(b)); }
  friend Type operator*(Type a, Type b) { return Type(float(a) * float(b)); }
  friend Type operator/(Type a, Type b) { return Type(float(a) / float(b)); }
  friend Type operator-(Type a) { return from_bits(a.bits ^ 0x8000); }
};

}  // namespace emulator
