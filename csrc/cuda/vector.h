// 16-byte accesses, and float32 in and out of the narrow dtypes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/ptx.h"

namespace fastllm::cuda {

// kWidth values that are loaded and stored as one.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T value[kWidth];
};

// How many values of T fill the widest access there is, 16 bytes.
template <typename T>
constexpr int kWidest = 16 / sizeof(T);

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Whether rows of `row` values of T, one after another from `pointer`, may be read 16 bytes at a time. Null may.
template <typename T>
bool rows_are_aligned(const void* pointer, int64_t row) {
  return is_aligned(pointer) && row % kWidest<T> == 0;
}

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(from);
}

// To global memory.
template <typename T, int kWidth>
__device__ __forceinline__ void store(T* to, const Pack<T, kWidth>& pack) {
  if constexpr (sizeof(pack) == 16 || sizeof(pack) == 8) {
    std::conditional_t<sizeof(pack) == 16, uint4, uint2> words;
    memcpy(&words, &pack, sizeof(pack));
    store_global(to, words);
  } else {
    *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
  }
}

// To shared memory, or to either.
template <typename T, int kWidth>
__device__ __forceinline__ void store_anywhere(T* to, const Pack<T, kWidth>& pack) {
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Loads and stores of what nobody will read again soon: kept out of the way of what the caches should hold.
template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> load_once(const T* from) {
  Pack<T, kWidth> pack;
  if constexpr (sizeof(pack) == 16) {
    *reinterpret_cast<uint4*>(&pack) = __ldcs(reinterpret_cast<const uint4*>(from));
  } else {
    pack = load<T, kWidth>(from);
  }
  return pack;
}

template <typename T, int kWidth>
__device__ __forceinline__ void store_once(T* to, const Pack<T, kWidth>& pack) {
  if constexpr (sizeof(pack) == 16) {
    __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&pack));
  } else {
    store(to, pack);
  }
}

template <typename T>
__device__ __forceinline__ float to_float(T value) {
  return static_cast<float>(value);
}

template <typename T>
__device__ __forceinline__ T from_float(float value) {
  return static_cast<T>(value);
}

}  // namespace fastllm::cuda
