#include "async_copy.h"

#include <cstring>

#include "block.h"
#include "fault.h"
#include "memory.h"
#include "traffic.h"

namespace emulator {

void AsyncCopies::clear() {
  copies_.clear();
  groups_.clear();
  uncommitted_ = 0;
}

void AsyncCopies::start(uintptr_t shared, uintptr_t global, uint32_t bytes, bool valid, uintptr_t site) {
  Copy copy{shared, bytes, site, {}};
  if (valid) {
    memory.touch_global(block.current(), global, bytes, Use::kRead, site);
    std::memcpy(copy.data.data(), reinterpret_cast<const void*>(global), bytes);
  }
  memory.in_flight(block.current(), shared, bytes, site);
  std::memset(reinterpret_cast<void*>(shared), 0xFF, bytes);
  copies_.push_back(copy);
  ++uncommitted_;
}

void AsyncCopies::commit() {
  groups_.push_back(uncommitted_);
  uncommitted_ = 0;
}

void AsyncCopies::wait(size_t newest_groups_left) {
  if (groups_.size() <= newest_groups_left) return;
  const size_t done = groups_.size() - newest_groups_left;
  size_t landing = 0;
  for (size_t group = 0; group < done; ++group) landing += groups_[group];
  for (size_t i = 0; i < landing; ++i) land(copies_[i]);
  copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(landing));
  groups_.erase(groups_.begin(), groups_.begin() + static_cast<std::ptrdiff_t>(done));
}

void AsyncCopies::land(const Copy& copy) {
  std::memcpy(reinterpret_cast<void*>(copy.shared), copy.data.data(), copy.bytes);
  memory.landed(block.current(), copy.shared, copy.bytes, copy.site);
}

void async_copy(void* shared, const void* global, size_t bytes, bool valid) {
  block.current().async_copies.start(reinterpret_cast<uintptr_t>(shared), reinterpret_cast<uintptr_t>(global),
                                     static_cast<uint32_t>(bytes), valid,
                                     reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}

void async_commit() {
  block.current().async_copies.commit();
}

void async_wait(int newest_groups_left) {
  block.current().async_copies.wait(static_cast<size_t>(newest_groups_left));
}

}  // namespace emulator
