// Packs that wait in registers while a kernel does something else.
#pragma once

#include <type_traits>

#include "cuda/vector.h"

namespace fastllm::cuda {

// kWidth values of T in whole words. (As a Pack, each 16-bit value would take a register of its own wherever branches
// meet, twice as many as there is need for.)
template <typename T, int kWidth>
struct Packed {
  using Word = std::conditional_t<sizeof(T) * kWidth % 4 == 0, uint32_t, T>;
  static constexpr int kWords = sizeof(T) * kWidth / sizeof(Word);

  Pack<Word, kWords> words;

  __device__ __forceinline__ static Packed load(const T* from) {
    return {cuda::load<Word, kWords>(reinterpret_cast<const Word*>(from))};
  }
  // What nobody reads again soon.
  __device__ __forceinline__ static Packed load_once(const T* from) {
    return {cuda::load_once<Word, kWords>(reinterpret_cast<const Word*>(from))};
  }
  __device__ __forceinline__ void store(T* to) const { cuda::store(reinterpret_cast<Word*>(to), words); }

  __device__ __forceinline__ void unpack(float (&value)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) unpack_word(words.value[i], value + i * kInWord);
  }
  __device__ __forceinline__ static Packed pack(const float (&value)[kWidth]) {
    Packed packed;
#pragma unroll
    for (int i = 0; i < kWords; ++i) packed.words.value[i] = pack_word(value + i * kInWord);
    return packed;
  }

 private:
  static constexpr int kInWord = kWidth / kWords;

  __device__ __forceinline__ static void unpack_word(Word word, float* value) {
    if constexpr (kInWord == 1) {
      value[0] = to_float(reinterpret_cast<const T&>(word));
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      // The upper half of a float: a shift and a mask, less than what the conversion of a 16-bit value takes.
      value[0] = __uint_as_float(word << 16);
      value[1] = __uint_as_float(word & 0xFFFF0000u);
    } else {
      const float2 pair = __half22float2(reinterpret_cast<const __half2&>(word));
      value[0] = pair.x;
      value[1] = pair.y;
    }
  }

  __device__ __forceinline__ static Word pack_word(const float* value) {
    Pack<T, kInWord> values;
#pragma unroll
    for (int i = 0; i < kInWord; ++i) values.value[i] = from_float<T>(value[i]);
    return reinterpret_cast<const Word&>(values);
  }
};

// kWidth floats of any width, 16 bytes at a time.
template <int kWidth>
constexpr int kFloatStep = kWidth < kWidest<float> ? kWidth : kWidest<float>;

template <int kWidth>
__device__ __forceinline__ void load_floats(const float* from, float (&value)[kWidth]) {
  constexpr int kStep = kFloatStep<kWidth>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kStep) {
    const Pack<float, kStep> pack = load<float, kStep>(from + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) value[i + j] = pack.value[j];
  }
}

// To global memory, or to shared memory or either.
template <bool kGlobal = true, int kWidth>
__device__ __forceinline__ void store_floats(float* to, const float (&value)[kWidth]) {
  constexpr int kStep = kFloatStep<kWidth>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kStep) {
    Pack<float, kStep> pack;
#pragma unroll
    for (int j = 0; j < kStep; ++j) pack.value[j] = value[i + j];
    if constexpr (kGlobal) {
      store(to + i, pack);
    } else {
      store_anywhere(to + i, pack);
    }
  }
}

}  // namespace fastllm::cuda
