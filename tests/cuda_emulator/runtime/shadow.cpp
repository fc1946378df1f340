#include "shadow.h"

#include <new>

namespace emulator {

namespace {

Cell* allocate(size_t count) {
  auto* cells = static_cast<Cell*>(std::calloc(count, sizeof(Cell)));  // large ones cost nothing until they are touched
  if (!cells) throw std::bad_alloc();
  return cells;
}

}  // namespace

Region::Region(uintptr_t begin, uintptr_t end) : begin_(begin), end_(end), base_(begin & ~uintptr_t{15}) {
  cells_.reset(allocate(((end - base_) >> shift_) + 1));
}

void Region::refine(uintptr_t divides) {
  const auto shift = static_cast<unsigned>(__builtin_ctzll(divides));
  const size_t old_count = ((end_ - base_) >> shift_) + 1, times = size_t{1} << (shift_ - shift);
  Cell* finer = allocate(old_count * times);
  for (size_t i = 0; i < old_count; ++i) {
    const Cell& cell = cells_[i];
    if (!cell.writer.step && !cell.first_reader.step) continue;
    for (size_t j = 0; j < times; ++j) finer[i * times + j] = cell;
  }
  cells_.reset(finer);
  shift_ = shift;
}

}  // namespace emulator
