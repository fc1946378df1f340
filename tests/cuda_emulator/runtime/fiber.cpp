#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__x86_64__)
// emulator_switch(void** save, void* load): rdi, rsi.
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
#define EMULATOR_HAS_SWITCH 1
#elif defined(__aarch64__)
// emulator_switch(void** save, void* load): x0, x1.
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
)");
#define EMULATOR_HAS_SWITCH 1
#else
#include <ucontext.h>
#define EMULATOR_HAS_SWITCH 0
#endif

namespace emulator {

#if EMULATOR_HAS_SWITCH

extern "C" void emulator_switch(void** save, void* load);

void Fiber::start(char* top, size_t, void (*entry)()) {
  auto* word = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
#if defined(__x86_64__)
  *--word = nullptr;                         // entry's return address, so that its stack is aligned as after a call
  *--word = reinterpret_cast<void*>(entry);  // where the switch's ret goes
  for (int i = 0; i < 6; ++i) *--word = nullptr;
#else
  word -= 20;
  for (int i = 0; i < 20; ++i) word[i] = nullptr;
  word[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  state_ = word;
}

void Fiber::change(Fiber& from, Fiber& to) {
  emulator_switch(&from.state_, to.state_);
}

#else

void Fiber::start(char* top, size_t bytes, void (*entry)()) {
  auto* context = state_ ? static_cast<ucontext_t*>(state_) : new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = top - bytes;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  state_ = context;
}

void Fiber::change(Fiber& from, Fiber& to) {
  if (!from.state_) from.state_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.state_), static_cast<ucontext_t*>(to.state_));
}

#endif

StackPool::~StackPool() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (char* stack : stacks_) munmap(stack - page, kBytes + page);
}

char* StackPool::low(int index) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  while (static_cast<int>(stacks_.size()) <= index) {
    void* memory =
        mmap(nullptr, kBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    stacks_.push_back(static_cast<char*>(memory) + page);
  }
  return stacks_[index];
}

}  // namespace emulator
