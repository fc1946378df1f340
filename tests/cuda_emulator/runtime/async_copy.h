// cp.async of one thread: what is under way, in groups, until it waits for them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

class AsyncCopies {
 public:
  void clear();
  void start(uintptr_t shared, uintptr_t global, uint32_t bytes, bool valid, uintptr_t site);
  void commit();
  void wait(std::size_t newest_groups_left);

 private:
  struct Copy {
    uintptr_t shared;
    uint32_t bytes;
    uintptr_t site;
    std::array<unsigned char, 16> data;
  };
  void land(const Copy& copy);

  std::vector<Copy> copies_;         // oldest first
  std::vector<std::size_t> groups_;  // how many copies each committed group has, oldest first
  std::size_t uncommitted_ = 0;
};

}  // namespace emulator
