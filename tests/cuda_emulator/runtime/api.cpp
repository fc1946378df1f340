#include "api.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "device.h"
#include "device_memory.h"
#include "fault.h"
#include "memory.h"

namespace emulator {

namespace {

// Of every device; device.cpp has what differs.
constexpr int kSharedPerBlock = 48 * 1024;
constexpr int kSharedReserved = 1024;  // a block, by the system
constexpr int kThreadsPerMultiprocessor = 2048, kBlocksPerMultiprocessor = 32;

cudaError_t last_error = cudaSuccess;

// By kernel and device: what is allowed on one device is not on another.
std::map<std::pair<const void*, int>, size_t>& allowed_shared_bytes() {
  static std::map<std::pair<const void*, int>, size_t> allowed;
  return allowed;
}

}  // namespace

cudaError_t set_last_error(cudaError_t error) {
  return last_error = error;
}

size_t max_shared_bytes(const void* kernel) {
  const auto it = allowed_shared_bytes().find({kernel, current_device()});
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
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
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
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kDevices) return set_last_error(cudaErrorInvalidDevice);
  if (device != current_device()) {
    throw Fault((running_op().empty() ? "" : running_op() + ": ") + "asks for an attribute of cuda:" +
                std::to_string(device) + " while the current device is cuda:" + std::to_string(current_device()));
  }
  const Properties& its = properties(device);
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
      *value = its.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = kThreadsPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = its.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = its.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = its.shared_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = its.shared_optin;
      return cudaSuccess;
  }
  return set_last_error(cudaErrorInvalidValue);
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t stream) {
  check_stream("cudaMemsetAsync", stream);
  memory.check_host_write(current_device(), reinterpret_cast<uintptr_t>(to), count, "cudaMemsetAsync");
  submit([to, byte, count] {
    const DeviceMemory::Access access;
    std::memset(to, byte, count);
  });
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // the others are hints
  if (value < 0 || value > properties(current_device()).shared_optin) return set_last_error(cudaErrorInvalidValue);
  allowed_shared_bytes()[{kernel, current_device()}] = static_cast<size_t>(value);
  return cudaSuccess;
}

// Without registers, which only a compiler for the GPU knows.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared_bytes) {
  if (threads < 1 || threads > 1024 || shared_bytes > max_shared_bytes(kernel)) {
    return set_last_error(cudaErrorInvalidValue);
  }
  const int whole_warps = (threads + 31) / 32 * 32;
  const int by_shared =
      properties(current_device()).shared_per_multiprocessor / (static_cast<int>(shared_bytes) + kSharedReserved);
  *blocks = std::min({kBlocksPerMultiprocessor, kThreadsPerMultiprocessor / whole_warps, by_shared});
  return cudaSuccess;
}
