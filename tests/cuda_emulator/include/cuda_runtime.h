// Stands in for the toolkit's cuda_runtime.h where kernels are compiled for the CPU: CUDA's keywords, built-in
// variables, barriers, warp functions, atomics on integers and arithmetic. There is no __shared__: see
// csrc/cuda/shared.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "emulator/device.h"
#include "vector_types.h"

#define __host__
#define __device__
#define __global__ __attribute__((noinline))  // so that reports tell lines up to the kernel and no further
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

// Set at every change of fibers.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------------------------------
// Barriers and fences
// ---------------------------------------------------------------------------------------------------------------------

__forceinline__ void __syncthreads(emulator::Place place = emulator::Place::here()) {
  emulator::synchronize_block(emulator::Barrier::kPlain, false, place);
}
__forceinline__ int __syncthreads_and(int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::synchronize_block(emulator::Barrier::kAnd, predicate != 0, place);
}
__forceinline__ int __syncthreads_or(int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::synchronize_block(emulator::Barrier::kOr, predicate != 0, place);
}
__forceinline__ int __syncthreads_count(int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::synchronize_block(emulator::Barrier::kCount, predicate != 0, place);
}
__forceinline__ void __syncwarp(unsigned mask = 0xFFFFFFFFu, emulator::Place place = emulator::Place::here()) {
  emulator::synchronize_warp(mask, place);
}
__forceinline__ void __threadfence() {
  emulator::thread_fence();
}
__forceinline__ void __threadfence_block() {}

// ---------------------------------------------------------------------------------------------------------------------
// Shuffles and votes
// ---------------------------------------------------------------------------------------------------------------------

namespace emulator {

template <typename T>
__forceinline__ T shuffle_value(Shuffle kind, unsigned mask, T value, int lane, int width, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>, "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = shuffle(kind, mask, bits, lane, width, place);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

template <typename T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize,
                              emulator::Place place = emulator::Place::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kIndex, mask, value, lane, width, place);
}
template <typename T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                                 emulator::Place place = emulator::Place::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kUp, mask, value, static_cast<int>(delta), width, place);
}
template <typename T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                                   emulator::Place place = emulator::Place::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kDown, mask, value, static_cast<int>(delta), width, place);
}
template <typename T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                                  emulator::Place place = emulator::Place::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kXor, mask, value, lanes, width, place);
}

__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, emulator::Place place = emulator::Place::here()) {
  return emulator::vote(emulator::Vote::kBallot, mask, predicate != 0, place);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, emulator::Place place = emulator::Place::here()) {
  return static_cast<int>(emulator::vote(emulator::Vote::kAny, mask, predicate != 0, place));
}
__forceinline__ int __all_sync(unsigned mask, int predicate, emulator::Place place = emulator::Place::here()) {
  return static_cast<int>(emulator::vote(emulator::Vote::kAll, mask, predicate != 0, place));
}

// ---------------------------------------------------------------------------------------------------------------------
// Atomics: on integers alone. A float's result would depend on the order in which threads come.
// ---------------------------------------------------------------------------------------------------------------------

namespace emulator {

template <typename T>
__forceinline__ T atomic_value(Atomic kind, T* address, T operand, T expected, Place place) {
  if constexpr (std::is_integral_v<T>) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics take 4 or 8 bytes");
    return static_cast<T>(atomic(kind, address, sizeof(T), std::is_signed_v<T>, static_cast<uint64_t>(operand),
                                 static_cast<uint64_t>(expected)));
  } else {
    float_atomic(place);
  }
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, kind)                                                                                  \
  template <typename T>                                                                                              \
  __forceinline__ T name(T* address, std::common_type_t<T> value, emulator::Place place = emulator::Place::here()) { \
    return emulator::atomic_value<T>(emulator::Atomic::kind, address, value, T(), place);                            \
  }
EMULATOR_ATOMIC(atomicAdd, kAdd)
EMULATOR_ATOMIC(atomicExch, kExchange)
EMULATOR_ATOMIC(atomicMin, kMin)
EMULATOR_ATOMIC(atomicMax, kMax)
EMULATOR_ATOMIC(atomicInc, kIncrement)
EMULATOR_ATOMIC(atomicDec, kDecrement)
EMULATOR_ATOMIC(atomicAnd, kAnd)
EMULATOR_ATOMIC(atomicOr, kOr)
EMULATOR_ATOMIC(atomicXor, kXor)
#undef EMULATOR_ATOMIC

template <typename T>
__forceinline__ T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value,
                            emulator::Place place = emulator::Place::here()) {
  return emulator::atomic_value<T>(emulator::Atomic::kCompareAndSwap, address, value, expected, place);
}

// ---------------------------------------------------------------------------------------------------------------------
// Loads and stores with cache hints, which the CPU ignores
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
__forceinline__ T __ldg(const T* from) {
  return *from;
}
template <typename T>
__forceinline__ T __ldcs(const T* from) {
  return *from;
}
template <typename T>
__forceinline__ T __ldcg(const T* from) {
  return *from;
}
template <typename T>
__forceinline__ void __stcs(T* to, T value) {
  *to = value;
}
template <typename T>
__forceinline__ void __stcg(T* to, T value) {
  *to = value;
}

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic
// ---------------------------------------------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float normcdff(float x) {
  return 0.5f * std::erfc(-0.70710678118654752f * x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __saturatef(float x) {
  return x > 0.0f ? std::fmin(x, 1.0f) : 0.0f;  // a NaN becomes 0
}

// These are never contracted to a fused multiply-add.
inline float __fmul_rn(float a, float b) {
  float product = a * b;
  asm("" : "+m"(product));
  return product;
}
inline float __fadd_rn(float a, float b) {
  asm("" : "+m"(a), "+m"(b));
  return a + b;
}

inline float __fsub_rn(float a, float b) {
  return __fadd_rn(a, -b);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline int __float_as_int(float x) {
  return static_cast<int>(__float_as_uint(x));
}
inline float __uint_as_float(unsigned bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __int_as_float(int bits) {
  return __uint_as_float(static_cast<unsigned>(bits));
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
