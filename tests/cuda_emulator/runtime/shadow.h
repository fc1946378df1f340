// What is remembered of memory that threads share: for each few bytes who wrote last and who has read since.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace emulator {

struct Note {
  uint32_t step;   // of the block: it names block and time. 0: nobody
  uint32_t syncs;  // of the warp, at that time
  uint32_t site;   // offset of the instruction in this program
  uint16_t thread;
  bool atomic;
  bool in_flight;  // cp.async has not delivered yet
};

// Two readers are enough: of all readers since a write, one is the first, and any other than it is kept as well, so a
// writer that is not alone with its reads finds somebody else.
struct Cell {
  Note writer, first_reader, last_reader;
};

// The cells of one range. A cell stands for as many bytes as the smallest access so far had: most ranges are only ever
// touched 16 bytes at a time.
class Region {
 public:
  Region(uintptr_t begin, uintptr_t end);

  uintptr_t begin() const { return begin_; }
  uintptr_t end() const { return end_; }

  struct Cells {
    Cell* first;
    Cell* last;  // one past
  };
  // The cells of an access; `address` is within, and a multiple of `bytes` or the grain sinks to what divides both.
  Cells cells(uintptr_t address, uint32_t bytes) {
    const uintptr_t offset = address - base_;
    if ((offset | bytes) & ((uintptr_t{1} << shift_) - 1)) refine(offset | bytes);
    return {&cells_[offset >> shift_], &cells_[(offset + bytes) >> shift_]};
  }
  uintptr_t address_of(const Cell* cell) const {
    return base_ + (static_cast<uintptr_t>(cell - cells_.get()) << shift_);
  }

 private:
  struct Free {
    void operator()(Cell* cells) const { std::free(cells); }
  };
  void refine(uintptr_t divides);

  uintptr_t begin_, end_, base_;  // base_: begin_ down to a multiple of 16
  unsigned shift_ = 4;
  std::unique_ptr<Cell[], Free> cells_;
};

}  // namespace emulator
