// The block that runs now: its threads as fibers, who may go on, and the barriers between them.
//
// Threads run one at a time, each until it waits or ends; who goes on is drawn at random among all who may. A `step` is
// the time between two barriers of a block. Steps are numbered through all blocks and launches of a process, so that a
// number says which block it belongs to, and what memory remembers of older ones goes stale by itself.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "async_copy.h"
#include "emulator/grid.h"
#include "fiber.h"
#include "warp.h"

namespace emulator {

constexpr int kMaxThreads = 1024;

struct Thread {
  enum class State : uint8_t { kReady, kWaiting, kEnded };

  Fiber fiber;
  uint3 index;
  int number;  // in the block, x first
  State state;
  const char* waits_for;  // "__syncthreads", ...
  Place waits_at;
  bool predicate;             // what it brought to a barrier
  bool wrote_since_fence;     // global memory
  uint32_t last_fence_step;   // 0: none yet
  uint32_t atomics_in_a_row;  // with no wait between
  AsyncCopies async_copies;

  int warp() const { return number / kLanes; }
  int lane() const { return number % kLanes; }
};

class Block {
 public:
  Block();

  void run(const Grid& grid, uint3 index);
  void seed(uint64_t seed) { random_.seed(seed); }
  std::mt19937_64& random() { return random_; }

  // The calling thread waits, until wake(); comes back when it is its turn.
  void wait(const char* what, Place where);
  void wake(Thread& thread);
  void yield();                                      // others may go on before the calling thread does
  [[noreturn]] void leave(const std::string& what);  // ends the launch with this sentence

  int synchronize(Barrier kind, bool predicate, Place place);

  bool is_running() const { return running_; }
  Thread& current() { return *current_; }
  // Whom a report is about: the current thread, but where one lane does the work of all.
  const Thread& subject() const { return *subject_; }
  void set_subject(const Thread& thread) { subject_ = &thread; }
  Thread& thread(int number) { return threads_[number]; }
  Warp& warp(int number) { return warps_[number]; }
  const Grid& grid() const { return *grid_; }
  uint32_t step() const { return step_; }
  uint32_t first_step() const { return first_step_; }
  uint32_t fenced_through() const { return fenced_through_; }  // all writes of these steps were fenced by their threads

 private:
  static void thread_main();
  void go_on();  // with any thread that may; the caller's fiber stays as it is
  void release_barrier();
  void next_step();
  void explain_deadlock();

  const Grid* grid_ = nullptr;
  uint32_t step_ = 0, first_step_ = 1, fenced_through_ = 0;
  int thread_count_ = 0, live_ = 0, at_barrier_ = 0;
  Barrier barrier_kind_ = Barrier::kPlain;
  int barrier_result_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  bool running_ = false;
  Thread* current_ = nullptr;
  const Thread* subject_ = nullptr;
  Fiber host_;
  std::string fault_;
  StackPool stacks_;
  std::mt19937_64 random_;
  std::unique_ptr<Thread[]> threads_;
  std::array<Warp, kMaxThreads / kLanes> warps_;
  std::vector<int> ready_;
};

extern Block block;  // one at a time

}  // namespace emulator
