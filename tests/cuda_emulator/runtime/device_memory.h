// The memory of the emulated devices: ranges of the process that the host cannot touch. They are open while kernels and
// torch's operators on the device run; a host that reads or writes there else is caught.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "device.h"

namespace emulator {

class DeviceMemory {
 public:
  DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Bytes of NaN, at borders of 512 bytes.
  void* allocate(int device, size_t bytes);
  void free(void* pointer);

  // The memory of a graph: what is freed stays as it is until the graph disowns it.
  void disown(uintptr_t block);
  void poison(uintptr_t block);

  int device_of(uintptr_t address) const;  // -1: it is no device's

  // While it is watched, only who has an Access may touch the memory.
  void watch(bool on);
  struct Access {
    Access();
    ~Access();
  };
  // Throws a fault that names `who` if the host touched the memory since the last call.
  void check_untouched(const std::string& who);

 private:
  static constexpr size_t kBytes = size_t{1} << 30;  // a device; pages that nobody touches cost nothing
  struct Block {
    size_t bytes;
    bool live, owned;
  };
  static void caught(int signal, void* info, void* context);
  void protect(bool on) const;
  void recycle(uintptr_t begin, Block& block);

  uintptr_t begin_ = 0;
  size_t used_[kDevices] = {};
  std::unordered_map<uintptr_t, Block> blocks_;
  std::map<std::pair<int, size_t>, std::vector<uintptr_t>> free_;
  bool watching_ = false;
  int accesses_ = 0;
};

DeviceMemory& device_memory();

}  // namespace emulator
