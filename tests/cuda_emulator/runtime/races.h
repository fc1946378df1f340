// Which accesses of different threads are in order, and which are a race.
//
// Order comes from __syncthreads within a block, from __syncwarp within a warp, and between blocks from "write, fence,
// atomic" on one side and an atomic on the same address later on the other, as where the last block to finish sums up.
// Blocks run one after another here, so that a race between them shows only in this bookkeeping.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "vector_types.h"

namespace emulator {

class Races {
 public:
  void start_launch();
  void start_block();

  // Check an access to a cell and note it; reports what is not in order.
  void read(Cell& cell, uintptr_t address, const Thread& thread, const Note& now, bool shared);
  void write(Cell& cell, uintptr_t address, const Thread& thread, const Note& now, bool shared);

  // An atomic of `thread` on global memory: publishes what it may and learns what others published there before.
  void atomic(uintptr_t address, const Thread& thread);

  bool is_stale(const Note& note, bool shared) const;
  std::string who(const Note& note) const;  // "thread (3, 0, 0) of block (1, 0, 0)"

 private:
  // What a block made visible with one atomic: its steps up to `through`, and of `thread` up to `own`.
  struct Release {
    uint32_t first_step, through, own;
    uint16_t thread;
  };

  bool ordered(const Note& before, const Thread& now, bool shared) const;
  bool published(const Note& before) const;
  [[noreturn]] void report(const char* verb, const Note& before, const char* before_verb, uintptr_t address,
                           const Note& now) const;

  uint32_t launch_step_ = 0;           // the first step of this launch
  std::vector<uint32_t> block_steps_;  // the first step of each block so far
  std::vector<uint3> block_indices_;
  std::unordered_map<uintptr_t, std::vector<Release>> releases_;  // by address, oldest first
  std::unordered_map<uintptr_t, size_t> acquired_;                // how many of them this block knows of
};

extern Races races;

}  // namespace emulator
