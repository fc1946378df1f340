// The scheme is that of Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), as BLIS lays
// it out: a register tile of C, fed from a panel of B that stays in L1 and rows of A that stay in L2.
#include "cpu/gemm.h"

#include <array>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {
namespace {

using V = at::vec::Vectorized<float>;
constexpr int64_t kLane = V::size();

// Register tile: kTileRows x 2 vectors. With 16 registers (AVX2, NEON has 32) 6 x 2 accumulators, 2 vectors of B and a
// broadcast of A make 15; with the 32 of AVX-512, 12 x 2 + 2 + 1 make 27.
constexpr int kTileRows = kLane == 16 ? 12 : 6;
constexpr int64_t kTileCols = 2 * kLane;

// A panel of B, kDepth x kTileCols, takes 256 * 16 * 4 B = 16 KiB (AVX-512: 32 KiB) of the 32 KiB (48 KiB) L1; the rows
// of A that pass over it, at most 96 x kDepth, 96 KiB of L2.
constexpr int64_t kDepth = 256;
constexpr int64_t kMaxTaskRows = 96;
// Columns of B that one task takes: with kDepth 256 KiB of L2.
constexpr int64_t kTaskCols = 256;
// Packed B at a time: 4 MiB, a share of L3 that other data survives.
constexpr int64_t kPackedElements = 1024 * 1024;

static_assert(kTaskCols % kTileCols == 0 && kMaxTaskRows % kTileRows == 0);

// ---------------------------------------------------------------------------------------------------------------------
// Register tile
// ---------------------------------------------------------------------------------------------------------------------

enum class Start { kZero, kBias, kC };  // what a tile's accumulators begin with

struct Tile {
  int64_t depth;
  const float* a;
  int64_t row_stride;  // a's; its column stride is 1, or kTileRows where packed
  const float* b;      // packed panel: depth x kTileCols
  const float* bias;   // at this tile's first column
  float* c;
  int64_t ldc;
  int64_t cols;  // of c that exist, at most kTileCols
  Start start;
};

template <int kRows, bool kPackedA>
void multiply_tile(const Tile& t) {
  V acc[kRows][2];
  const bool whole = t.cols == kTileCols;
  const auto part = [&](const float* p, int half) {
    return whole ? V::loadu(p + half * kLane)
                 : vload_part(p + half * kLane, std::clamp<int64_t>(t.cols - half * kLane, 0, kLane));
  };
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      acc[i][half] = t.start == Start::kZero   ? V(0.0f)
                     : t.start == Start::kBias ? part(t.bias, half)
                                               : part(t.c + i * t.ldc, half);
    }
  }
  const float* a = t.a;
  const float* b = t.b;
  for (int64_t p = 0; p < t.depth; ++p) {
    const V b0 = V::loadu(b), b1 = V::loadu(b + kLane);
    b += kTileCols;
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const V ai(kPackedA ? a[i] : a[i * t.row_stride]);
      acc[i][0] = at::vec::fmadd(ai, b0, acc[i][0]);
      acc[i][1] = at::vec::fmadd(ai, b1, acc[i][1]);
    }
    a += kPackedA ? kTileRows : 1;
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* out = t.c + i * t.ldc + half * kLane;
      if (whole) {
        acc[i][half].store(out);
      } else {
        vstore_part(out, acc[i][half], std::clamp<int64_t>(t.cols - half * kLane, 0, kLane));
      }
    }
  }
}

// multiply_tile for 1, .., kTileRows rows.
template <bool kPackedA>
constexpr auto kTiles = []<size_t... I>(std::index_sequence<I...>) {
  return std::array{&multiply_tile<static_cast<int>(I) + 1, kPackedA>...};
}(std::make_index_sequence<kTileRows>());

// ---------------------------------------------------------------------------------------------------------------------
// Packing
// ---------------------------------------------------------------------------------------------------------------------

// 8 x 8 at a time, so that both sides are read and written in runs of at least 32 bytes.
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  constexpr int64_t kBlock = 8;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
      const float* from = in + r0 * in_stride + c0;
      float* to = out + c0 * out_stride + r0;
#if defined(CPU_CAPABILITY_AVX2)
      if (r0 + kBlock <= rows && c0 + kBlock <= cols) {
        at::vec::transpose_mxn<float, 8, 8>(from, in_stride, to, out_stride);
        continue;
      }
#endif
      for (int64_t c = 0; c < std::min(kBlock, cols - c0); ++c)
        for (int64_t r = 0; r < std::min(kBlock, rows - r0); ++r) to[c * out_stride + r] = from[r * in_stride + c];
    }
  }
}

// Columns [col, col + kTileCols) of B as a k x kTileCols panel; columns past n are zero.
void pack_b_panel(const Matrix& b, int64_t k, int64_t n, int64_t col, float* panel) {
  const int64_t cols = std::min(kTileCols, n - col);
  if (cols < kTileCols) std::fill(panel, panel + k * kTileCols, 0.0f);
  if (b.transposed) {
    transpose(b.data + col * b.stride, b.stride, cols, k, panel, kTileCols);
    return;
  }
  for (int64_t p = 0; p < k; ++p) {
    const float* row = b.data + p * b.stride + col;
    float* out = panel + p * kTileCols;
    if (cols == kTileCols) {
      V::loadu(row).store(out);
      V::loadu(row + kLane).store(out + kLane);
    } else {
      std::copy(row, row + cols, out);
    }
  }
}

// Rows [row, row + rows) and columns [p0, p0 + depth) of a transposed A, as depth x kTileRows panels.
void pack_a(const Matrix& a, int64_t row, int64_t rows, int64_t p0, int64_t depth, float* packed) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    const int64_t height = std::min<int64_t>(kTileRows, rows - r);
    for (int64_t p = 0; p < depth; ++p) {
      const float* in = a.data + (p0 + p) * a.stride + row + r;
      float* out = packed + (r * depth) + p * kTileRows;
      if (height == kTileRows) {
        std::memcpy(out, in, kTileRows * sizeof(float));
      } else {
        std::memcpy(out, in, static_cast<size_t>(height) * sizeof(float));
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tasks
// ---------------------------------------------------------------------------------------------------------------------

// Rows a task takes: as many as L2 holds, fewer where that leaves too few tasks to share; but every task reads its
// columns' panels in full, so not fewer than two tiles' worth.
int64_t task_rows(int64_t m, int64_t col_tasks) {
  constexpr int64_t kEnoughTasks = 8;
  int64_t rows = kMaxTaskRows;
  while (rows > 2 * kTileRows && ceil_div(m, rows) * col_tasks < kEnoughTasks) rows /= 2;
  return ceil_div(rows, kTileRows) * kTileRows;
}

struct Block {
  int64_t row, rows;  // of A and C
  int64_t col, cols;  // of B and C
  int64_t k;
  const float* packed_b;  // the panel of column `col`
};

void multiply_block(const Block& block, const Matrix& a, float* c, int64_t ldc, const GemmOptions& options) {
  float* packed_a = a.transposed ? scratch<float>(kMaxTaskRows * kDepth) : nullptr;
  for (int64_t p0 = 0; p0 < block.k || p0 == 0; p0 += kDepth) {
    const int64_t depth = std::min(kDepth, block.k - p0);
    if (a.transposed) pack_a(a, block.row, block.rows, p0, depth, packed_a);
    const Start start = p0 > 0 || options.accumulate ? Start::kC : options.bias ? Start::kBias : Start::kZero;
    for (int64_t j = 0; j < block.cols; j += kTileCols) {
      Tile tile{};
      tile.depth = depth;
      tile.b = block.packed_b + j * block.k + p0 * kTileCols;
      tile.bias = options.bias ? options.bias + block.col + j : nullptr;
      tile.ldc = ldc;
      tile.cols = std::min(kTileCols, block.cols - j);
      tile.start = start;
      tile.row_stride = a.stride;
      for (int64_t i = 0; i < block.rows; i += kTileRows) {
        const int64_t height = std::min<int64_t>(kTileRows, block.rows - i);
        tile.c = c + (block.row + i) * ldc + block.col + j;
        if (a.transposed) {
          tile.a = packed_a + i * depth;
          kTiles<true>[height - 1](tile);
        } else {
          tile.a = a.data + (block.row + i) * a.stride + p0;
          kTiles<false>[height - 1](tile);
        }
      }
    }
  }
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, float* c, int64_t ldc,
          const GemmOptions& options) {
  if (m == 0 || n == 0 || (k == 0 && options.accumulate)) return;
  // B is packed a slab of columns at a time; the slab's size depends on k alone.
  const int64_t slab_cols = std::max(kTaskCols, kPackedElements / std::max<int64_t>(k, 1) / kTaskCols * kTaskCols);
  float* packed = scratch<float>(std::min(slab_cols, ceil_div(n, kTileCols) * kTileCols) * k, 1);
  for (int64_t slab = 0; slab < n; slab += slab_cols) {
    const int64_t cols = std::min(slab_cols, n - slab);
    const int64_t panels = ceil_div(cols, kTileCols);
    constexpr int64_t kPackTask = 4;  // panels: some microseconds of copying
    parallel_for(ceil_div(panels, kPackTask), [&](int64_t task) {
      for (int64_t panel = task * kPackTask; panel < std::min(panels, (task + 1) * kPackTask); ++panel) {
        pack_b_panel(b, k, n, slab + panel * kTileCols, packed + panel * kTileCols * k);
      }
    });
    const int64_t col_tasks = ceil_div(cols, kTaskCols);
    const int64_t rows = task_rows(m, col_tasks);
    parallel_for(ceil_div(m, rows) * col_tasks, [&](int64_t task) {
      const int64_t row = task / col_tasks * rows, col = task % col_tasks * kTaskCols;
      const Block block{row, std::min(rows, m - row), slab + col, std::min(kTaskCols, cols - col), k, packed + col * k};
      multiply_block(block, a, c, ldc, options);
    });
  }
}

void column_sums(int64_t m, int64_t n, const float* a, int64_t stride, float* out) {
  const RowBlocks blocks = RowBlocks::for_sums(m, n);
  std::vector<float> partials(static_cast<size_t>(blocks.count * n));
  parallel_for(blocks.count, [&](int64_t block) {
    float* sums = partials.data() + block * n;
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const float* in = a + row * stride;
      for_each_vec<float>(n, [&](int64_t c, auto load, auto store) { store(sums + c, load(sums + c) + load(in + c)); });
    }
  });
  sum_partials<float>(partials.data(), blocks.count, n, out);
}

}  // namespace fastllm
