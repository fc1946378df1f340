// Stands in for csrc/cuda/ptx.h: the same wrappers, carried out by the runtime.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <type_traits>

#include "cuda_runtime.h"

namespace fastllm::cuda {

__device__ __forceinline__ void store_global(void* to, uint4 words) {
  *static_cast<uint4*>(to) = words;
}
__device__ __forceinline__ void store_global(void* to, uint2 words) {
  *static_cast<uint2*>(to) = words;
}

__device__ __forceinline__ float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

__device__ __forceinline__ int here(int x) {
  return x;
}

// The bytes in shared memory are NaN until they land at cp_async_wait; a read before that is reported.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::async_copy(shared, global, kBytes, valid);
}

__device__ __forceinline__ void cp_async_commit() {
  emulator::async_commit();
}

template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
  emulator::async_wait(kGroupsLeft);
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared,
                                            emulator::Place place = emulator::Place::here()) {
  emulator::load_matrices(r, shared, false, place);
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared,
                                                  emulator::Place place = emulator::Place::here()) {
  emulator::load_matrices(r, shared, true, place);
}

template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             emulator::Place place = emulator::Place::here()) {
  constexpr bool kBFloat16 = std::is_same_v<T, __nv_bfloat16>;
  static_assert(kBFloat16 || std::is_same_v<T, __half>, "T is __nv_bfloat16 or __half");
  emulator::multiply_accumulate(kBFloat16 ? emulator::Narrow::kBFloat16 : emulator::Narrow::kFloat16, d, a, b, place);
}

}  // namespace fastllm::cuda
