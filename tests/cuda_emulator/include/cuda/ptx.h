// Stands in for csrc/cuda/ptx.h: the same wrappers, carried out by the runtime.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_runtime.h"

namespace fastllm::cuda {

// Shared memory keeps its old bytes until cp_async_wait, as nothing promises otherwise; a read before is reported.
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
constexpr emulator::Narrow kNarrow = emulator::Narrow::kBFloat16;
template <>
inline constexpr emulator::Narrow kNarrow<__half> = emulator::Narrow::kFloat16;

template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             emulator::Place place = emulator::Place::here()) {
  static_assert(sizeof(T) == 2, "T is __nv_bfloat16 or __half");
  emulator::multiply_accumulate(kNarrow<T>, d, a, b, place);
}

}  // namespace fastllm::cuda
