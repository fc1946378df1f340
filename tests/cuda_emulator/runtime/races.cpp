#include "races.h"

#include <algorithm>

#include "block.h"
#include "fault.h"

namespace emulator {

Races races;

void Races::start_launch() {
  launch_step_ = block.step() + 1;
  block_steps_.clear();
  block_indices_.clear();
  releases_.clear();
}

void Races::start_block() {
  block_steps_.push_back(block.first_step());
  block_indices_.push_back(blockIdx);
  acquired_.clear();
}

bool Races::is_stale(const Note& note, bool shared) const {
  return note.step < (shared ? block.first_step() : launch_step_);
}

bool Races::ordered(const Note& before, const Thread& now, bool shared) const {
  if (is_stale(before, shared)) return true;
  if (before.step < block.first_step()) return published(before);
  if (before.thread == now.number || before.step < block.step()) return true;
  if (before.thread / kLanes != now.warp()) return false;
  return block.warp(now.warp()).ordered_since(before.syncs, now.lane(), before.thread % kLanes);
}

bool Races::published(const Note& before) const {
  for (const auto& [at, count] : acquired_) {
    const auto& log = releases_.at(at);
    // Blocks come one after another, so the log is sorted by first_step.
    auto it = std::upper_bound(log.begin(), log.begin() + static_cast<std::ptrdiff_t>(count), before.step,
                               [](uint32_t step, const Release& release) { return step < release.first_step; });
    const uint32_t first = it == log.begin() ? 0 : (it - 1)->first_step;
    while (it != log.begin() && (--it)->first_step == first) {
      if (before.step <= it->through || (before.thread == it->thread && before.step <= it->own)) {
        const auto next = std::upper_bound(block_steps_.begin(), block_steps_.end(), first);
        if (next == block_steps_.end() || before.step < *next) return true;
      }
    }
  }
  return false;
}

void Races::atomic(uintptr_t address, const Thread& thread) {
  auto& log = releases_[address];
  acquired_[address] = log.size();
  const uint32_t step = block.step();
  const bool fenced_now = thread.last_fence_step == step;
  const uint32_t through = fenced_now ? step - 1 : block.fenced_through();
  log.push_back(
      {block.first_step(), through, thread.wrote_since_fence ? through : step, static_cast<uint16_t>(thread.number)});
}

void Races::read(Cell& cell, uintptr_t address, const Thread& thread, const Note& now, bool shared) {
  if (!(now.atomic && cell.writer.atomic) && !ordered(cell.writer, thread, shared)) {
    report("reads", cell.writer, "wrote", address, now);
  }
  Note& first = cell.first_reader;
  const bool replace = is_stale(first, shared) ||
                       (first.step >= block.first_step() && (first.thread == now.thread || first.step < block.step()));
  (replace ? first : cell.last_reader) = now;
}

void Races::write(Cell& cell, uintptr_t address, const Thread& thread, const Note& now, bool shared) {
  if (!(now.atomic && cell.writer.atomic) && !ordered(cell.writer, thread, shared)) {
    report("writes", cell.writer, "wrote", address, now);
  }
  for (const Note* reader : {&cell.first_reader, &cell.last_reader}) {
    if (!(now.atomic && reader->atomic) && !ordered(*reader, thread, shared)) {
      report("writes", *reader, "read", address, now);
    }
  }
  cell.writer = now;
  cell.first_reader.step = cell.last_reader.step = 0;
}

std::string Races::who(const Note& note) const {
  std::string out = "thread " + text(block.thread(note.thread).index);
  const auto at = std::upper_bound(block_steps_.begin(), block_steps_.end(), note.step) - block_steps_.begin() - 1;
  const uint3 index = block_indices_[static_cast<size_t>(at)];
  return note.step >= block.first_step() ? out : out + " of block " + text(index);
}

void Races::report(const char* verb, const Note& before, const char* before_verb, uintptr_t address,
                   const Note& now) const {
  const bool same_block = before.step >= block.first_step();
  fault("race in " + memory.describe(address) + ": this thread " + verb + memory.place(now.site) + " what " +
        who(before) + " " + before_verb + memory.place(before.site) + ", with " +
        (same_block ? "no barrier" : "nothing that orders the blocks") + " between");
}

}  // namespace emulator
