// What kernels call of the runtime, through the stand-ins for CUDA's headers. Nothing here is inlined into a kernel but
// thin wrappers: the compiler instruments what it inlines, and the runtime must not watch itself.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

// Where a kernel calls something that waits. The source line, not the address: compilers copy code.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Barrier { kPlain, kAnd, kOr, kCount };
int synchronize_block(Barrier kind, bool predicate, Place place);
void synchronize_warp(unsigned mask, Place place);

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int lane, int width, Place place);

enum class Vote { kBallot, kAny, kAll };
unsigned vote(Vote kind, unsigned mask, bool predicate, Place place);

enum class Atomic { kAdd, kExchange, kMin, kMax, kIncrement, kDecrement, kCompareAndSwap, kAnd, kOr, kXor };
uint64_t atomic(Atomic kind, void* address, size_t bytes, bool is_signed, uint64_t operand, uint64_t expected);
[[noreturn]] void float_atomic(Place place);

void thread_fence();

void* shared_memory(size_t at_least);

// cp.async: bytes is 4, 8 or 16; without `valid`, zeros land.
void async_copy(void* shared, const void* global, size_t bytes, bool valid);
void async_commit();
void async_wait(int newest_groups_left);

// ldmatrix.x4 and mma.m16n8k16, each called by all lanes of a warp.
void load_matrices(uint32_t* fragments, const void* row, bool transposed, Place place);
enum class Narrow { kBFloat16, kFloat16 };
void multiply_accumulate(Narrow type, float* d, const uint32_t* a, const uint32_t* b, Place place);

}  // namespace emulator
