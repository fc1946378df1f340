// Stands in for csrc/ops/cuda_device.h: the "device" is the CPU, the stream is nobody's, and registrations are kept for
// emulated.install().
#pragma once

#include <cuda_runtime_api.h>

#include "emulator/library.h"
#include "ops/op.h"

#define FASTLLM_CUDA_IMPL(m)                                                       \
  static void register_emulated(::emulator::Library& m);                           \
  static const ::emulator::Registration emulated_registration(&register_emulated); \
  static void register_emulated(::emulator::Library& m)

namespace fastllm {

struct CudaGuard {
  explicit CudaGuard(const Tensor&) {}
};

inline cudaStream_t current_stream() {
  return nullptr;
}

}  // namespace fastllm
