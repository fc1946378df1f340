// Atomics on integers. Fibers never run at once, so that a plain read and write will do. Each lets other threads go on
// first: who waits for another thread of its block by atomics gets there, and orders are mixed further.
#include <cstring>

#include "block.h"
#include "fault.h"
#include "memory.h"

namespace emulator {

namespace {

template <typename T>
T apply(Atomic kind, T old, T operand, T expected) {
  switch (kind) {
    case Atomic::kAdd:
      return static_cast<T>(static_cast<uint64_t>(old) + static_cast<uint64_t>(operand));
    case Atomic::kExchange:
      return operand;
    case Atomic::kMin:
      return operand < old ? operand : old;
    case Atomic::kMax:
      return operand > old ? operand : old;
    case Atomic::kIncrement:
      return old >= operand ? T{0} : static_cast<T>(old + 1);
    case Atomic::kDecrement:
      return old == 0 || old > operand ? operand : static_cast<T>(old - 1);
    case Atomic::kCompareAndSwap:
      return old == expected ? operand : old;
    case Atomic::kAnd:
      return old & operand;
    case Atomic::kOr:
      return old | operand;
    case Atomic::kXor:
      return old ^ operand;
  }
  return old;
}

template <typename T>
uint64_t exchange(Atomic kind, void* address, uint64_t operand, uint64_t expected) {
  T old;
  std::memcpy(&old, address, sizeof old);
  const T now = apply<T>(kind, old, static_cast<T>(operand), static_cast<T>(expected));
  std::memcpy(address, &now, sizeof now);
  return static_cast<uint64_t>(old);
}

constexpr uint32_t kMostInARow = 1 << 20;

}  // namespace

uint64_t atomic(Atomic kind, void* address, size_t bytes, bool is_signed, uint64_t operand, uint64_t expected) {
  const auto site = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  if (++block.current().atomics_in_a_row == kMostInARow) {
    fault("has made " + std::to_string(kMostInARow) + " atomics in a row" + memory.place_of(site) +
          ": does it wait for another block? Blocks run one after another");
  }
  block.yield();
  memory.touch(reinterpret_cast<uintptr_t>(address), static_cast<uint32_t>(bytes), Use::kAtomic, site);
  if (bytes == 4) {
    return is_signed ? exchange<int32_t>(kind, address, operand, expected)
                     : exchange<uint32_t>(kind, address, operand, expected);
  }
  return is_signed ? exchange<int64_t>(kind, address, operand, expected)
                   : exchange<uint64_t>(kind, address, operand, expected);
}

void float_atomic(Place place) {
  fault("atomic on floating-point numbers at " + text(place) +
        ": its result depends on the order in which threads come; sum in a fixed order");
}

}  // namespace emulator
