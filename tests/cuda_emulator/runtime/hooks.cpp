// What the compiler calls before each memory access of a kernel: -fsanitize=thread inserts the calls, and these
// functions take the place of the sanitizer's own library. They are hidden, so that nothing else in the process finds
// them.
#include <cstddef>
#include <cstdint>

#include "memory.h"

#define EMULATOR_HOOK extern "C" __attribute__((visibility("hidden"))) void

namespace {

using emulator::memory;
using emulator::Use;

#define EMULATOR_SITE reinterpret_cast<uintptr_t>(__builtin_return_address(0))

// An access that the source does not promise to be aligned is one of the widest pieces that are.
void touch_pieces(uintptr_t address, size_t bytes, Use use, uintptr_t site) {
  while (bytes > 0) {
    size_t piece = 16;
    while (piece > bytes || address % piece) piece /= 2;
    memory.touch(address, static_cast<uint32_t>(piece), use, site);
    address += piece;
    bytes -= piece;
  }
}

}  // namespace

#define EMULATOR_SIZED(bytes)                                                              \
  EMULATOR_HOOK __tsan_read##bytes(void* address) {                                        \
    memory.touch(reinterpret_cast<uintptr_t>(address), bytes, Use::kRead, EMULATOR_SITE);  \
  }                                                                                        \
  EMULATOR_HOOK __tsan_write##bytes(void* address) {                                       \
    memory.touch(reinterpret_cast<uintptr_t>(address), bytes, Use::kWrite, EMULATOR_SITE); \
  }                                                                                        \
  EMULATOR_HOOK __tsan_volatile_read##bytes(void* address) {                               \
    memory.touch(reinterpret_cast<uintptr_t>(address), bytes, Use::kRead, EMULATOR_SITE);  \
  }                                                                                        \
  EMULATOR_HOOK __tsan_volatile_write##bytes(void* address) {                              \
    memory.touch(reinterpret_cast<uintptr_t>(address), bytes, Use::kWrite, EMULATOR_SITE); \
  }                                                                                        \
  EMULATOR_HOOK __tsan_unaligned_read##bytes(void* address) {                              \
    touch_pieces(reinterpret_cast<uintptr_t>(address), bytes, Use::kRead, EMULATOR_SITE);  \
  }                                                                                        \
  EMULATOR_HOOK __tsan_unaligned_write##bytes(void* address) {                             \
    touch_pieces(reinterpret_cast<uintptr_t>(address), bytes, Use::kWrite, EMULATOR_SITE); \
  }

EMULATOR_SIZED(1)
EMULATOR_SIZED(2)
EMULATOR_SIZED(4)
EMULATOR_SIZED(8)
EMULATOR_SIZED(16)

EMULATOR_HOOK __tsan_read_range(void* address, size_t bytes) {
  touch_pieces(reinterpret_cast<uintptr_t>(address), bytes, Use::kRead, EMULATOR_SITE);
}
EMULATOR_HOOK __tsan_write_range(void* address, size_t bytes) {
  touch_pieces(reinterpret_cast<uintptr_t>(address), bytes, Use::kWrite, EMULATOR_SITE);
}
EMULATOR_HOOK __tsan_vptr_update(void**, void*) {}
EMULATOR_HOOK __tsan_vptr_read(void**) {}
EMULATOR_HOOK __tsan_func_entry(void*) {}
EMULATOR_HOOK __tsan_func_exit(void*) {}
EMULATOR_HOOK __tsan_init() {}
