#include "block.h"

#include <algorithm>
#include <string_view>

#include "fault.h"
#include "memory.h"
#include "races.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block block;

// ---------------------------------------------------------------------------------------------------------------------
// Fibers
// ---------------------------------------------------------------------------------------------------------------------

Block::Block() : threads_(new Thread[kMaxThreads]) {
  ready_.reserve(kMaxThreads);
}

void Block::run(const Grid& grid, uint3 index) {
  grid_ = &grid;
  const dim3 size = grid.threads;
  thread_count_ = live_ = static_cast<int>(size.x * size.y * size.z);
  at_barrier_ = 0;
  fenced_through_ = 0;
  first_step_ = ++step_;
  blockIdx = index;
  blockDim = size;
  gridDim = grid.blocks;
  ready_.clear();
  for (int i = 0; i < thread_count_; ++i) {
    Thread& thread = threads_[i];
    const auto at = static_cast<unsigned>(i);
    thread.index = {at % size.x, at / size.x % size.y, at / (size.x * size.y)};
    thread.number = i;
    thread.state = Thread::State::kReady;
    thread.wrote_since_fence = false;
    thread.last_fence_step = 0;
    thread.atomics_in_a_row = 0;
    thread.async_copies.clear();
    thread.fiber.start(stacks_.top(i), StackPool::kBytes - 4096, &Block::thread_main);
    if (i % kLanes == 0) warps_[i / kLanes].start(i / kLanes, std::min(kLanes, thread_count_ - i));
    ready_.push_back(i);
  }
  fault_.clear();
  running_ = true;
  memory.start_block();
  races.start_block();
  current_ = nullptr;
  go_on();
  running_ = false;
  memory.own_stack(0, ~uintptr_t{0});
  if (!fault_.empty()) throw Fault(fault_);
}

void Block::thread_main() {
  block.grid_->call(block.grid_->parameters);
  Thread& thread = *block.current_;
  thread.state = Thread::State::kEnded;
  --block.live_;
  block.warp(thread.warp()).ended(thread.lane());
  if (block.live_ > 0 && block.at_barrier_ == block.live_) block.release_barrier();
  block.go_on();
  __builtin_unreachable();
}

void Block::go_on() {
  Fiber& from = current_ ? current_->fiber : host_;
  if (ready_.empty()) {
    if (live_ > 0) explain_deadlock();
    Fiber::change(from, host_);
    return;
  }
  // Lemire's multiply in place of a modulus.
  const auto draw = static_cast<uint32_t>(random_());
  const auto pick = static_cast<size_t>(static_cast<uint64_t>(draw) * ready_.size() >> 32);
  Thread& next = threads_[ready_[pick]];
  ready_[pick] = ready_.back();
  ready_.pop_back();
  const bool stays = &next == current_;
  current_ = &next;
  subject_ = current_;
  threadIdx = next.index;
  if (stays) return;
  memory.own_stack(reinterpret_cast<uintptr_t>(stacks_.low(next.number)), StackPool::kBytes);
  Fiber::change(from, next.fiber);
}

void Block::wait(const char* what, Place where) {
  current_->state = Thread::State::kWaiting;
  current_->waits_for = what;
  current_->waits_at = where;
  current_->atomics_in_a_row = 0;
  go_on();
}

void Block::wake(Thread& thread) {
  thread.state = Thread::State::kReady;
  ready_.push_back(thread.number);
}

void Block::yield() {
  ready_.push_back(current_->number);
  go_on();
}

void Block::leave(const std::string& what) {
  fault_ = what;
  Fiber abandoned;
  Fiber::change(abandoned, host_);
  __builtin_unreachable();
}

// ---------------------------------------------------------------------------------------------------------------------
// __syncthreads
// ---------------------------------------------------------------------------------------------------------------------

namespace {

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && std::string_view(a.file) == b.file;
}

const char* name_of(Barrier kind) {
  constexpr const char* kNames[] = {"__syncthreads", "__syncthreads_and", "__syncthreads_or", "__syncthreads_count"};
  return kNames[static_cast<int>(kind)];
}

}  // namespace

int Block::synchronize(Barrier kind, bool predicate, Place place) {
  Thread& thread = *current_;
  if (at_barrier_ == 0) {
    barrier_kind_ = kind;
    first_at_barrier_ = &thread;
  } else if (kind != barrier_kind_ || !same_place(place, first_at_barrier_->waits_at)) {
    fault(std::string("divergent barrier: this thread is at the ") + name_of(kind) + " of " + text(place) +
          " while thread " + text(first_at_barrier_->index) + " waits at the " + first_at_barrier_->waits_for + " of " +
          text(first_at_barrier_->waits_at));
  }
  thread.predicate = predicate;
  if (++at_barrier_ == live_) {
    thread.state = Thread::State::kWaiting;
    thread.waits_for = name_of(kind);
    release_barrier();
    go_on();
  } else {
    wait(name_of(kind), place);
  }
  return barrier_result_;
}

void Block::release_barrier() {
  int yes = 0, all = 0;
  for (int i = 0; i < thread_count_; ++i) {
    Thread& thread = threads_[i];
    if (thread.state == Thread::State::kEnded) continue;
    yes += thread.predicate;
    ++all;
    wake(thread);
  }
  const Barrier kind = barrier_kind_;
  barrier_result_ = kind == Barrier::kAnd ? yes == all : kind == Barrier::kOr ? yes > 0 : yes;
  at_barrier_ = 0;
  next_step();
}

void Block::next_step() {
  bool fenced = true;
  for (int i = 0; i < thread_count_; ++i) fenced = fenced && !threads_[i].wrote_since_fence;
  if (fenced) fenced_through_ = step_;
  ++step_;
}

void Block::explain_deadlock() {
  // Threads that wait for the same thing at the same place are told together.
  std::string who;
  for (int i = 0; i < thread_count_;) {
    const Thread& first = threads_[i];
    int end = i + 1;
    auto like_first = [&](const Thread& other) {
      return other.state == first.state &&
             (other.state == Thread::State::kEnded ||
              (other.waits_for == first.waits_for && same_place(other.waits_at, first.waits_at)));
    };
    while (end < thread_count_ && like_first(threads_[end])) ++end;
    who += who.empty() ? "" : "; ";
    who += end - i == 1 ? "thread " + std::to_string(i)
                        : "threads " + std::to_string(i) + " to " + std::to_string(end - 1);
    if (first.state == Thread::State::kEnded) {
      who += end - i == 1 ? " has ended" : " have ended";
    } else {
      who += end - i == 1 ? " waits at the " : " wait at the ";
      who += first.waits_for + (" of " + text(first.waits_at));
    }
    i = end;
  }
  fault("no thread can go on: " + who);
}

int synchronize_block(Barrier kind, bool predicate, Place place) {
  return block.synchronize(kind, predicate, place);
}

void thread_fence() {
  Thread& thread = block.current();
  thread.wrote_since_fence = false;
  thread.last_fence_step = block.step();
}

}  // namespace emulator
