#include "device_memory.h"

#include <signal.h>
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "fault.h"
#include "memory.h"

namespace emulator {

namespace {

struct sigaction before;  // whose signals those are that come from elsewhere

// Of the first touch since the last check; a signal handler wrote it.
volatile uintptr_t touched_address = 0, touching_instruction = 0;

uintptr_t instruction_of(void* context) {
  const auto* all = static_cast<ucontext_t*>(context);
#if defined(__x86_64__)
  return static_cast<uintptr_t>(all->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return all->uc_mcontext.pc;
#else
  return 0;
#endif
}

}  // namespace

DeviceMemory& device_memory() {
  static auto* const memory = new DeviceMemory;  // tensors may outlive every static variable
  return *memory;
}

DeviceMemory::DeviceMemory() {
  void* pages =
      mmap(nullptr, kDevices * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  begin_ = reinterpret_cast<uintptr_t>(pages);
}

// ---------------------------------------------------------------------------------------------------------------------
// Blocks
// ---------------------------------------------------------------------------------------------------------------------

void* DeviceMemory::allocate(int device, size_t bytes) {
  if (bytes == 0) return nullptr;
  size_t rounded = 512;
  while (rounded < bytes) rounded *= 2;
  auto& free = free_[{device, rounded}];
  uintptr_t block = 0;
  if (!free.empty()) {
    block = free.back();
    free.pop_back();
  } else {
    if (used_[device] + rounded > kBytes) throw std::bad_alloc();
    block = begin_ + static_cast<size_t>(device) * kBytes + used_[device];
    used_[device] += rounded;
  }
  Graph* const graph = Graph::capturing();
  blocks_[block] = {rounded, true, graph != nullptr};
  if (graph) graph->own(block);
  const Access access;
  poison(block);
  return reinterpret_cast<void*>(block);
}

void DeviceMemory::free(void* pointer) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  Block& block = blocks_.at(begin);
  block.live = false;
  recycle(begin, block);
}

void DeviceMemory::disown(uintptr_t begin) {
  Block& block = blocks_.at(begin);
  block.owned = false;
  recycle(begin, block);
}

void DeviceMemory::recycle(uintptr_t begin, Block& block) {
  if (!block.live && !block.owned) free_[{device_of(begin), block.bytes}].push_back(begin);
}

void DeviceMemory::poison(uintptr_t begin) {
  std::memset(reinterpret_cast<void*>(begin), 0xFF, blocks_.at(begin).bytes);  // NaN in every floating dtype
}

int DeviceMemory::device_of(uintptr_t address) const {
  return address - begin_ < kDevices * kBytes ? static_cast<int>((address - begin_) / kBytes) : -1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Protection
// ---------------------------------------------------------------------------------------------------------------------

void DeviceMemory::protect(bool on) const {
  mprotect(reinterpret_cast<void*>(begin_), kDevices * kBytes, on ? PROT_NONE : PROT_READ | PROT_WRITE);
}

// The access is let through, so that the host's code goes on to where the fault can be thrown.
void DeviceMemory::caught(int signal, void* raw_info, void* context) {
  const auto* info = static_cast<siginfo_t*>(raw_info);
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (device_memory().device_of(address) < 0) {
    sigaction(signal, &before, nullptr);  // the instruction comes again, and with it the signal
    return;
  }
  touched_address = address;
  touching_instruction = instruction_of(context);
  device_memory().protect(false);
}

void DeviceMemory::watch(bool on) {
  if (watching_ == on) return;
  watching_ = on;
  if (on) {
    struct sigaction action{};
    action.sa_sigaction = [](int signal, siginfo_t* info, void* context) { caught(signal, info, context); };
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
  } else {
    sigaction(SIGSEGV, &before, nullptr);
  }
  protect(on);
}

DeviceMemory::Access::Access() {
  DeviceMemory& memory = device_memory();
  if (memory.accesses_++ == 0 && memory.watching_) memory.protect(false);
}

DeviceMemory::Access::~Access() {
  DeviceMemory& memory = device_memory();
  if (--memory.accesses_ == 0 && memory.watching_) memory.protect(true);
}

void DeviceMemory::check_untouched(const std::string& who) {
  if (!touched_address) return;
  const std::string what = emulator::memory.describe(touched_address), at = text(touching_instruction + 1);
  const int device = device_of(touched_address);
  touched_address = 0;
  protect(watching_ && accesses_ == 0);
  throw Fault(who + ": the host reads or writes " + what + ", memory of cuda:" + std::to_string(device) +
              (at.empty() ? "" : ", at " + at));
}

}  // namespace emulator
