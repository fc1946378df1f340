// Stands in for csrc/ops/cuda_device.h: registrations are kept for emulated.install(), device and stream are the
// emulator's own.
#pragma once

#include <c10/core/DeviceGuard.h>
#include <cuda_runtime_api.h>

#include "emulator/library.h"
#include "emulator/stream.h"
#include "ops/op.h"

#define FASTLLM_CUDA_IMPL(m)                                                       \
  static void register_emulated(::emulator::Library& m);                           \
  static const ::emulator::Registration emulated_registration(&register_emulated); \
  static void register_emulated(::emulator::Library& m)

namespace fastllm {

struct CudaGuard {
  explicit CudaGuard(const Tensor& tensor) {
    if (tensor.is_cuda()) guard.reset_device(tensor.device());
  }
  c10::OptionalDeviceGuard guard;
};

inline cudaStream_t current_stream() {
  return ::emulator::current_stream();
}

}  // namespace fastllm
