#include "api.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "fault.h"
#include "memory.h"

namespace emulator {

namespace {

// An H100 SXM's figures.
constexpr int kSharedPerBlock = 48 * 1024, kSharedPerBlockOptIn = 227 * 1024, kSharedPerMultiprocessor = 228 * 1024;
constexpr int kSharedReserved = 1024;  // a block, by the system
constexpr int kThreadsPerMultiprocessor = 2048, kBlocksPerMultiprocessor = 32;

cudaError_t last_error = cudaSuccess;

std::unordered_map<const void*, size_t>& allowed_shared_bytes() {
  static std::unordered_map<const void*, size_t> allowed;
  return allowed;
}

}  // namespace

cudaError_t set_last_error(cudaError_t error) {
  return last_error = error;
}

size_t max_shared_bytes(const void* kernel) {
  const auto it = allowed_shared_bytes().find(kernel);
  return it == allowed_shared_bytes().end() ? kSharedPerBlock : std::max<size_t>(kSharedPerBlock, it->second);
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  return last_error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return set_last_error(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = kSharedPerBlock;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = kThreadsPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedPerBlockOptIn;
      return cudaSuccess;
  }
  return set_last_error(cudaErrorInvalidValue);
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
  memory.check_host_write(reinterpret_cast<uintptr_t>(to), count, "cudaMemsetAsync");
  std::memset(to, byte, count);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // the others are hints
  if (value < 0 || value > kSharedPerBlockOptIn) return set_last_error(cudaErrorInvalidValue);
  allowed_shared_bytes()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

// Without registers, which only a compiler for the GPU knows.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared_bytes) {
  if (threads < 1 || threads > 1024 || shared_bytes > max_shared_bytes(kernel)) {
    return set_last_error(cudaErrorInvalidValue);
  }
  const int whole_warps = (threads + 31) / 32 * 32;
  const int by_shared = kSharedPerMultiprocessor / (static_cast<int>(shared_bytes) + kSharedReserved);
  *blocks = std::min({kBlocksPerMultiprocessor, kThreadsPerMultiprocessor / whole_warps, by_shared});
  return cudaSuccess;
}
