// What a profiler would tell of memory accesses: for each instruction of a kernel how many 32-byte sectors of global
// memory, or how many passes over shared memory's banks, a warp's request took.
//
// Lanes run at different times here, so a request is put together from the lanes' n-th executions of an instruction.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "warp.h"

namespace emulator {

struct Tally {
  bool shared = false, writes = false;
  uint32_t bytes = 0;     // a lane
  uint64_t requests = 0;  // of a warp
  uint64_t lanes = 0;     // in all requests
  uint64_t sectors = 0;   // global memory
  uint64_t passes = 0;    // shared memory: what a request takes,
  uint64_t fewest = 0;    // and what it would take without bank conflicts
};

class Traffic {
 public:
  void start_launch(std::string_view kernel);
  void end_block();
  void note(const Thread& thread, uintptr_t site, uintptr_t address, uint32_t bytes, bool writes, bool shared);

  // By instruction and kind of memory: one may load from either.
  using Tallies = std::map<uintptr_t, Tally>;
  static uintptr_t key(uintptr_t site, bool shared) { return site << 1 | static_cast<uintptr_t>(shared); }
  static uintptr_t site_of_key(uintptr_t key) { return key >> 1; }
  const std::map<std::string, Tallies, std::less<>>& kernels() const { return kernels_; }
  void reset() { kernels_.clear(); }

 private:
  struct Request {
    uint32_t lanes;
    std::array<uintptr_t, kLanes> address;
  };
  struct Open {  // the requests of one warp at one instruction that still lack lanes
    std::array<uint32_t, kLanes> executions{};
    uint32_t closed = 0;   // requests that were counted and are no longer in `requests`
    uint32_t counted = 0;  // the first of `requests`, which were counted too
    std::vector<Request> requests;
  };
  struct Site {
    Tally* tally;
    std::array<Open, 32> warps;
  };
  static void count(Tally& tally, const Request& request);
  Site& site_of(uintptr_t site, uint32_t bytes, bool writes, bool shared);

  std::map<std::string, Tallies, std::less<>> kernels_;
  Tallies* tallies_ = nullptr;
  std::unordered_map<uintptr_t, Site> sites_;
  static constexpr size_t kRecent = 256;
  std::array<std::pair<uintptr_t, Site*>, kRecent> recent_{};  // by the low bits of the instruction's address
};

extern Traffic traffic;

}  // namespace emulator
