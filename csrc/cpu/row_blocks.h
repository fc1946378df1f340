// How kernels over (rows, cols) matrices cut their work, and how they sum gradients over rows deterministically: each
// block of rows sums its own rows in order, then the blocks' partial sums are added in order. The cut depends on the
// shape alone.
#pragma once

#include "common/parallel.h"
#include "cpu/simd.h"

namespace fastllm {

// About this many elements make a task: tens of microseconds of work against the few that starting threads costs, and
// at 4 bytes each a quarter of a 256 KiB L2 cache.
constexpr int64_t kTaskElements = 16 * 1024;

struct RowBlocks {
  int64_t rows;
  int64_t rows_per_block;
  int64_t count;

  int64_t begin(int64_t block) const { return block * rows_per_block; }
  int64_t end(int64_t block) const { return std::min(rows, (block + 1) * rows_per_block); }

  // For kernels without sums over rows: tasks of about kTaskElements.
  static RowBlocks of_elements(int64_t rows, int64_t cols) {
    const int64_t rows_per_block = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, cols));
    return {rows, rows_per_block, ceil_div(rows, rows_per_block)};
  }

  // For kernels that also sum over rows: at most 64 blocks, so that the partial sums stay small beside the matrix, or
  // as many as make blocks of 128 rows: a sum of many more would be off, as what is added is small beside it.
  static RowBlocks for_sums(int64_t rows, int64_t cols) {
    const int64_t wanted = std::max(kTaskElements / std::max<int64_t>(1, cols), ceil_div(rows, 64));
    const int64_t rows_per_block = std::clamp<int64_t>(wanted, 1, 128);
    return {rows, rows_per_block, ceil_div(rows, rows_per_block)};
  }
};

// out[c] = partials[0][c] + partials[1][c] + .. over `blocks` rows of `cols` values, in that order and in double: there
// may be many blocks.
template <typename T>
void sum_partials(const Compute<T>* partials, int64_t blocks, int64_t cols, T* out) {
  using C = Compute<T>;
  constexpr int64_t kCols = 512;
  parallel_for(ceil_div(cols, kCols), [&](int64_t task) {
    const int64_t begin = task * kCols, width = std::min(kCols, cols - begin);
    double sums[kCols] = {};
    for (int64_t block = 0; block < blocks; ++block) {
      const C* row = partials + block * cols + begin;
      for (int64_t c = 0; c < width; ++c) sums[c] += row[c];
    }
    for (int64_t c = 0; c < width; ++c) out[begin + c] = static_cast<T>(sums[c]);
  });
}

}  // namespace fastllm
