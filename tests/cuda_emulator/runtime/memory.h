// Which memory a kernel may touch and how: every access of instrumented code comes here.
//
// An access must lie in the thread's own stack, in the block's shared memory, in one of the launch's buffers, or
// (reads) in the kernel's parameters and the program's constants.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "shadow.h"

namespace emulator {

struct Thread;

// A range of global memory that kernels may touch.
struct Buffer {
  uintptr_t begin, end;
  std::string name;  // "'input' [3, 255] float32"
  bool writable = true;
  bool allocated = false;  // by the op that runs
  int device = -1;         // whose memory it is; -1: a CPU tensor that stands for one of any device
};

enum class Use : uint8_t { kRead, kWrite, kAtomic };

class Memory {
 public:
  Memory();
  ~Memory();

  // The buffers of the launches to come.
  std::vector<Buffer>& buffers() { return buffers_; }

  void start_launch(int device, size_t shared_bytes, uintptr_t parameters, size_t parameter_bytes);
  void start_block();

  // What the fiber that runs now may always touch.
  void own_stack(uintptr_t low, size_t bytes) {
    stack_low_ = low;
    stack_bytes_ = bytes;
  }
  bool in_own_stack(uintptr_t address) const { return address - stack_low_ < stack_bytes_; }

  // Checks an access of the current thread and notes it. `site` is the address of the instruction after it.
  void touch(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) {
    if (!in_own_stack(address)) touch_elsewhere(address, bytes, use, site);
  }
  // The same for any thread of the block and one kind of memory.
  void touch_shared(Thread& thread, uintptr_t address, uint32_t bytes, Use use, uintptr_t site);
  void touch_global(Thread& thread, uintptr_t address, uint32_t bytes, Use use, uintptr_t site);

  // What the runtime's API writes on the host's behalf.
  void check_host_write(int device, uintptr_t address, size_t bytes, const char* function);

  // cp.async: from here to landed(), the bytes are nobody's to read or write.
  void in_flight(Thread& thread, uintptr_t shared, uint32_t bytes, uintptr_t site);
  void landed(Thread& thread, uintptr_t shared, uint32_t bytes, uintptr_t site);

  void* shared() const { return reinterpret_cast<void*>(shared_begin_); }
  size_t shared_bytes() const { return shared_end_ - shared_begin_; }
  bool is_shared(uintptr_t address) const { return address - arena_ < kArenaBytes + kGuardBytes; }

  // For reports.
  std::string describe(uintptr_t address) const;  // "byte 12 of shared memory"
  std::string place(uint32_t site) const;         // " at gelu.cu:57", or nothing if it is not known
  static std::string place_of(uintptr_t site);
  static std::string hex(uintptr_t address);

 private:
  // An H100's 227 KiB and room below, then what nobody may touch: an access that misses is still known as one of shared
  // memory.
  static constexpr size_t kArenaBytes = 256 * 1024, kGuardBytes = 64 * 1024;

  static const char* verb(Use use);
  Note note(const Thread& thread, Use use, uintptr_t site) const;
  void touch_elsewhere(uintptr_t address, uint32_t bytes, Use use, uintptr_t site);
  void check_alignment(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) const;
  [[noreturn]] void out_of_bounds(uintptr_t address, uint32_t bytes, Use use, uintptr_t site) const;
  Region& region_of(uintptr_t address, uint32_t bytes, Use use, uintptr_t site);

  bool is_elsewhere(const Buffer& buffer) const { return buffer.device >= 0 && buffer.device != device_; }

  int device_ = 0;  // that the launch runs on
  uintptr_t stack_low_ = 0, stack_bytes_ = ~uintptr_t{0};
  uintptr_t arena_ = 0, shared_begin_ = 0, shared_end_ = 0;
  uintptr_t image_begin_ = 0, image_end_ = 0;
  uintptr_t parameters_ = 0, parameters_end_ = 0;
  std::vector<Buffer> buffers_;
  size_t last_buffer_ = 0;
  std::vector<std::unique_ptr<Region>> regions_;  // of the launch's buffers, merged where they overlap
  Region* last_region_ = nullptr;
  std::unique_ptr<Region> shared_region_;
};

extern Memory memory;

}  // namespace emulator
