// A fiber: a stack and the registers that a function call must preserve. Knows nothing of CUDA.
// swapcontext would save the signal mask too, with a system call a switch; a switch here is a dozen instructions.
#pragma once

#include <cstddef>
#include <vector>

namespace emulator {

class Fiber {
 public:
  // Makes the next switch to this fiber call entry() on the stack that ends at `top`; entry must never return.
  void start(char* top, size_t bytes, void (*entry)());

  // Leaves `from` (the code that runs now) and goes on with `to`.
  static void change(Fiber& from, Fiber& to);

 private:
  void* state_ = nullptr;  // the saved stack pointer; a ucontext_t* where there is no switch in assembly
};

// Stacks of one size, made once and used again; below each lies a page that nobody may touch.
class StackPool {
 public:
  static constexpr size_t kBytes = 256 * 1024;  // what is never touched costs nothing

  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();

  char* low(int index);  // the lowest usable address

  // Where stack `index` begins to grow down from: not on the same cache set as its neighbours'.
  char* top(int index) { return low(index) + kBytes - index % 61 * 64; }

 private:
  std::vector<char*> stacks_;
};

}  // namespace emulator
