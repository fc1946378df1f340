// C is computed in register tiles of kTileRows x kTileCols: for every k, a row of B's panel is loaded and each of the
// tile's A values is broadcast and multiplied into its row of accumulators (the scheme of BLIS: Van Zee & van de Geijn,
// "BLIS: A framework for rapidly instantiating BLAS functionality", 2015).
//
// B is copied to panels that the tiles read front to back. A is read where it is if its rows are contiguous along k;
// a transposed A is copied, block by block, by the thread that needs it.
//
// K is cut into blocks of at most kDepth. An element of C is the sum of its blocks' sums, in order, each a chain of
// fused multiply-adds in order: no tile shape, task or thread changes it.

#include "cpu/gemm.h"

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "common/parallel.h"
#include "cpu/register_tile.h"

namespace fastllm {
namespace {

using Vec = at::vec::Vectorized<float>;

constexpr int64_t kLanes = Vec::size();

constexpr int64_t kTileCols = 2 * kLanes;

// The tile's rows, and the bytes of a panel of B, kDepth x kTileCols.
//
// With AVX2 a panel takes half of a 32 KiB L1 cache, and a tile's rows of A (6 KiB) fit beside it. With AVX-512 a tile
// reads so little of B for its arithmetic, 16 bytes a cycle or less, that L2 gives it in time, and C, which goes to
// memory and back for each block of the depth, costs more. Fewer rows than registers allow keep 16 accumulators, enough
// for two units of latency 4: 12 rows of A whose stride is a multiple of 2 KiB, as 512 or 1024 channels make it, fall
// into two sets of an L1 cache of 8 ways. On one core of a Zen 4, for 1536 x 2048 x 512: 12 rows and 16 KiB 90 GFLOP/s,
// 12 and 128 KiB 97, 8 and 16 KiB 105, 8 and 64 KiB 110 (AVX2 104, torch 100).
//
// The Xeons that have AMX were measured with 12 rows alone: on an Emerald Rapids 128 KiB reach 0.85 of what the tile
// does in L1, 16 KiB 0.65 (1024 x 3072 x 768, one thread).
#if defined(FASTLLM_AMX)
constexpr int64_t kTileRows = 12, kPanelBytes = 128 * 1024;
#elif defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kTileRows = 8, kPanelBytes = 64 * 1024;
#else
constexpr int64_t kTileRows = kRegisterTileRows, kPanelBytes = 16 * 1024;
#endif
constexpr int64_t kDepth = kPanelBytes / (kTileCols * sizeof(float));

// Rows of C computed before the next: their part of A (96 to 192 KiB) stays in L2 while the panels of B pass, and each
// panel serves 8 to 16 tiles.
constexpr int64_t kBlockRows = 96;

// A task computes at most {rows, columns} of C: the first cut that gives kTasks of them, else the last. Each thread
// packs the B its tasks need for itself: on two cores of one Zen 4, taking over lines that another core packed cost
// more than packing them again (98304 floats: 20 us by one core, 90 us by two in turns, then again to read them). So
// where A is read in place, tasks are tall: packing a column of B costs about as much as 10 rows of C in it. Where A is
// packed too, tasks are wide.
constexpr int64_t kTallCuts[][2] = {{1024, 128}, {384, 64}, {192, 64}, {96, 64}};
constexpr int64_t kWideCuts[][2] = {{96, 1024}, {48, 1024}, {48, 256}, {48, 64}};
constexpr int64_t kTasks = 6;

// Floats of B that a thread holds packed at most, before K is cut: 8 MiB, a part of L3. And in how many blocks of
// columns.
constexpr int64_t kPackedFloats = 2 * 1024 * 1024;
constexpr int64_t kHeldBlocks = 16;

constexpr int kPackedBSlot = 2;
constexpr int kPackedASlot = 3;

// How many blocks cover `total`: one, if an empty one, for none, so that sums over nothing are written.
int64_t count_blocks(int64_t total, int64_t block) {
  return std::max<int64_t>(1, ceil_div(total, block));
}

// Cuts `total` into the fewest blocks of at most `limit`, as even as multiples of `unit` allow; returns their size.
int64_t even_block(int64_t total, int64_t limit, int64_t unit) {
  return std::max(unit, round_up(ceil_div(total, count_blocks(total, limit)), unit));
}

int64_t depth_block(int64_t k) {
  return even_block(k, kDepth, 8);
}

// ---------------------------------------------------------------------------------------------------------------------
// The register tile
// ---------------------------------------------------------------------------------------------------------------------

struct TileOutput {
  float* c;
  int64_t stride;
  int64_t cols;       // columns of C, the rest of the tile is padding
  const float* bias;  // or null
  bool add;           // to what C holds
};

// C's tile = A's rows x B's panel.
template <int kRows, int kVecs>
void multiply_tile(int64_t depth, const RegisterTileRows<float>& a, const float* b, const TileOutput& out) {
  unroll<kRows>(
      [&](auto i) { unroll<kVecs>([&](auto v) { __builtin_prefetch(out.c + i * out.stride + v * kLanes, 1); }); });
  register_tile<float, kRows, kVecs>(depth, a, b, kVecs * kLanes, [&](auto& sums) {
    const auto write = [&](auto load, auto store) __attribute__((always_inline)) {
      if (out.bias) {
        unroll<kVecs>([&](auto v) {
          const Vec bias = load(out.bias, v);
          unroll<kRows>([&](auto i) { sums[i][v] = sums[i][v] + bias; });
        });
      }
      unroll<kRows>([&](auto i) {
        float* row = out.c + i * out.stride;
        unroll<kVecs>([&](auto v) { store(row, v, out.add ? load(row, v) + sums[i][v] : sums[i][v]); });
      });
    };
    if (out.cols == kVecs * kLanes) {
      write([](const float* p, int v) { return Vec::loadu(p + v * kLanes); },
            [](float* p, int v, const Vec& x) { x.store(p + v * kLanes); });
    } else {
      const auto count = [&](int v) { return std::clamp<int64_t>(out.cols - v * kLanes, 0, kLanes); };
      write([&](const float* p, int v) { return Vec::loadu(p + v * kLanes, count(v)); },
            [&](float* p, int v, const Vec& x) { x.store(p + v * kLanes, count(v)); });
    }
  });
}

using MultiplyTile = decltype(&multiply_tile<1, 1>);

// The tiles of 1 .. kTileRows rows.
template <int kVecs, int... kRows>
constexpr std::array<MultiplyTile, sizeof...(kRows)> tiles_of(std::integer_sequence<int, kRows...>) {
  return {&multiply_tile<kRows + 1, kVecs>...};
}

template <int kVecs>
constexpr auto kTiles = tiles_of<kVecs>(std::make_integer_sequence<int, kTileRows>{});

// ---------------------------------------------------------------------------------------------------------------------
// Packing
// ---------------------------------------------------------------------------------------------------------------------

// Copies the transpose of `rows` <= kLanes rows of `cols` floats, and fetches the rows that follow them: a core that
// walks down as many rows as a vector has lanes is one that its own prefetching does not serve. With few rows of A,
// where reading B is all the time, this took a product from 13 to 22 GB/s on one core of a Zen 5.
void copy_transposed(const float* source, int64_t source_stride, int64_t rows, int64_t cols, float* out,
                     int64_t out_stride) {
  int64_t col = 0;
  if (rows == kLanes)
    for (; col + kLanes <= cols; col += kLanes) {
      for (int64_t row = 0; row < kLanes; ++row) __builtin_prefetch(source + (kLanes + row) * source_stride + col);
      at::vec::transpose_mxn<float, kLanes, kLanes>(source + col, source_stride, out + col * out_stride, out_stride);
    }
  for (; col < cols; ++col)
    for (int64_t row = 0; row < kLanes; ++row)
      out[col * out_stride + row] = row < rows ? source[row * source_stride + col] : 0.0f;
}

// Packs rows [k0, k0 + depth), columns [n0, n0 + cols) of B: panels of kTileCols columns one after the other, in each
// its depth rows; columns are padded with zeros to a multiple of kLanes, so the last panel may be half as wide.
void pack_b_block(const GemmOperand& b, int64_t k0, int64_t depth, int64_t n0, int64_t cols, float* out) {
  int64_t whole_cols = 0;
  if (!b.transposed) {
    // Along the rows of B first: they are longer runs of memory than a panel's.
    whole_cols = cols / kTileCols * kTileCols;
    for (int64_t k = 0; k < depth; ++k) {
      const float* from = b.data + (k0 + k) * b.stride + n0;
      for (int64_t col = 0; col < whole_cols; col += kTileCols) {
        float* to = out + col * depth + k * kTileCols;
        Vec::loadu(from + col).store(to);
        Vec::loadu(from + col + kLanes).store(to + kLanes);
      }
    }
  }
  for (int64_t col = whole_cols; col < cols; col += kLanes) {
    const int64_t panel = col / kTileCols * kTileCols;
    const int64_t width = std::min(round_up(cols - panel, kLanes), kTileCols);
    const int64_t valid = std::min(cols - col, kLanes);
    float* to = out + panel * depth + (col - panel);
    if (b.transposed) {
      copy_transposed(b.data + (n0 + col) * b.stride + k0, b.stride, valid, depth, to, width);
    } else {
      const float* from = b.data + k0 * b.stride + n0 + col;
      for (int64_t k = 0; k < depth; ++k) Vec::loadu(from + k * b.stride, valid).store(to + k * width);
    }
  }
}

// Packs rows [i0, i0 + rows), columns [k0, k0 + depth) of a transposed A (m rows) into panels of kTileRows rows,
// panel_stride floats apart. A panel's rows are written in whole vectors, each store overwriting what the one before
// wrote too far; the last one's excess needs the kLanes floats between panels. `sums`, if not null, receives the rows'
// sums.
void pack_a_block(const GemmOperand& a, int64_t m, int64_t i0, int64_t rows, int64_t k0, int64_t depth, float* out,
                  int64_t panel_stride, float* sums, bool add_sums) {
  constexpr int64_t kVecs = round_up(kTileRows, kLanes) / kLanes;  // a panel's row
  const auto pack_panels = [&]<int kPanels>(int64_t row, const auto& load) {
    const float* from = a.data + k0 * a.stride + i0 + row;
    float* to = out + row / kTileRows * panel_stride;
    Vec totals[kPanels][kVecs];
    unroll<kPanels>([&](auto p) { unroll<kVecs>([&](auto v) { totals[p][v] = Vec(0.0f); }); });
    for (int64_t k = 0; k < depth; ++k, from += a.stride, to += kTileRows)
      unroll<kPanels>([&](auto p) {
        unroll<kVecs>([&](auto v) {
          const Vec values = load(from + p * kTileRows + v * kLanes, v);
          values.store(to + p * panel_stride + v * kLanes);
          totals[p][v] = totals[p][v] + values;
        });
      });
    if (!sums) return;
    unroll<kPanels>([&](auto p) {
      float lanes[kVecs * kLanes];
      unroll<kVecs>([&](auto v) { totals[p][v].store(lanes + v * kLanes); });
      const int64_t i = row + p * kTileRows;
      for (int64_t lane = 0; lane < std::min(rows - i, kTileRows); ++lane)
        sums[i0 + i + lane] = add_sums ? sums[i0 + i + lane] + lanes[lane] : lanes[lane];
    });
  };
  // Four panels at a time, for longer runs of A's memory (96 bytes with AVX2). What loads take in excess must be in A's
  // row.
  constexpr int64_t kExcess = kVecs * kLanes - kTileRows;
  const auto whole = [](const float* p, int64_t) { return Vec::loadu(p); };
  int64_t row = 0;
  for (; row + 3 * kTileRows < rows && i0 + row + 4 * kTileRows + kExcess <= m; row += 4 * kTileRows)
    pack_panels.template operator()<4>(row, whole);
  for (; row < rows && i0 + row + kTileRows + kExcess <= m; row += kTileRows)
    pack_panels.template operator()<1>(row, whole);
  for (; row < rows; row += kTileRows)
    pack_panels.template operator()<1>(row, [&](const float* p, int64_t v) {
      return Vec::loadu(p, std::clamp<int64_t>(m - i0 - row - v * kLanes, 0, kLanes));
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------------------------------

struct Product {
  int64_t m, n, k;
  GemmOperand a;
  float* c;
  int64_t c_stride;
  GemmOptions options;
};

// Part of B, packed: blocks of `block` rows one after the other, in each the panels of columns [n0, n0 + padded_cols).
struct PackedB {
  float* data;
  int64_t block, n0, padded_cols;

  float* panel(int64_t index, int64_t depth, int64_t col) const {
    return data + index * block * padded_cols + (col - n0) * depth;
  }
};

// Rows [i0, i1) and columns [j0, j1) of C, for the depths [k0, k1). Packs B first, block by block, unless b is null.
void multiply_block(const Product& product, int64_t k0, int64_t k1, const GemmOperand* b, const PackedB& packed_b,
                    int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const GemmOperand& a = product.a;
  const GemmOptions& options = product.options;
  const int64_t panel_stride = packed_b.block * kTileRows + kLanes;
  float* packed_a = nullptr;
  if (a.transposed) packed_a = scratch<float>(ceil_div(i1 - i0, kTileRows) * panel_stride, kPackedASlot);
  for (int64_t index = 0, k = k0; index == 0 || k < k1; ++index, k += packed_b.block) {
    const int64_t depth = std::min(packed_b.block, k1 - k);
    const bool add = options.accumulate || k > 0;
    if (b) pack_b_block(*b, k, depth, j0, j1 - j0, packed_b.panel(index, depth, j0));
    if (a.transposed)
      pack_a_block(a, product.m, i0, i1 - i0, k, depth, packed_a, panel_stride, j0 == 0 ? options.row_sums : nullptr,
                   add);
    for (int64_t rows0 = i0; rows0 < i1; rows0 += kBlockRows) {
      const int64_t rows1 = std::min(i1, rows0 + kBlockRows);
      for (int64_t col = j0; col < j1; col += kTileCols) {
        const auto& tiles = j1 - col <= kLanes ? kTiles<1> : kTiles<2>;
        const float* panel = packed_b.panel(index, depth, col);
        TileOutput out{nullptr, product.c_stride, std::min(j1 - col, kTileCols),
                       k == 0 && options.bias ? options.bias + col : nullptr, add};
        for (int64_t row = rows0; row < rows1; row += kTileRows) {
          out.c = product.c + row * product.c_stride + col;
          const RegisterTileRows<float> a_rows =
              a.transposed ? RegisterTileRows<float>{packed_a + (row - i0) / kTileRows * panel_stride, 1, kTileRows}
                           : RegisterTileRows<float>{a.data + row * a.stride + k, a.stride, 1};
          tiles[std::min(rows1 - row, kTileRows) - 1](depth, a_rows, panel, out);
        }
      }
    }
  }
}

struct Cut {
  int64_t rows, cols;

  Cut(const Product& product) {
    for (const auto& [most_rows, most_cols] : product.a.transposed ? kWideCuts : kTallCuts) {
      rows = even_block(product.m, most_rows, kTileRows);
      cols = even_block(product.n, most_cols, kTileCols);
      if (ceil_div(product.m, rows) * ceil_div(product.n, cols) >= kTasks) break;
    }
  }
};

// Calls body(i0, i1, j0, j1) in parallel for each block of C.
template <typename Body>
void for_each_block(const Product& product, const Cut& cut, const Body& body) {
  const int64_t m = product.m, n = product.n, col_tasks = count_blocks(n, cut.cols);
  parallel_for(ceil_div(m, cut.rows) * col_tasks, [&](int64_t task) {
    // Columns first: two threads in step on two blocks of columns keep each to its own.
    const int64_t i0 = task / col_tasks * cut.rows, j0 = task % col_tasks * cut.cols;
    body(i0, std::min(m, i0 + cut.rows), j0, std::min(n, j0 + cut.cols));
  });
}

}  // namespace

void gemm(int64_t m, int64_t n, int64_t k, GemmOperand a, GemmOperand b, float* c, int64_t c_stride,
          const GemmOptions& options) {
  // Which blocks of B this thread's scratch holds, so that other rows of C with the same columns need not pack them
  // again.
  struct Held {
    uint64_t pass;
    int64_t col;
  };
  static thread_local Held held[kHeldBlocks] = {};
  static std::atomic<uint64_t> passes{0};

  if (options.row_sums && !a.transposed) throw std::invalid_argument("fastllm: gemm sums the rows of a transposed A");
  const Product product{m, n, k, a, c, c_stride, options};
  const Cut cut(product);
  const int64_t block = depth_block(k);
  const int64_t slots = cut.rows >= m ? 1 : std::min(kHeldBlocks, count_blocks(n, cut.cols));
  const int64_t depth = std::min(k, std::max(block, kPackedFloats / (cut.cols * slots) / block * block));
  const int64_t floats = cut.cols * depth;
  int64_t k0 = 0;
  do {
    const int64_t k1 = std::min(k, k0 + depth);
    const uint64_t pass = ++passes;
    for_each_block(product, cut, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      const int64_t slot = j0 / cut.cols % slots;
      const PackedB own{scratch<float>(slots * floats, kPackedBSlot) + slot * floats, block, j0,
                        round_up(j1 - j0, kLanes)};
      const bool ready = held[slot].pass == pass && held[slot].col == j0;
      multiply_block(product, k0, k1, ready ? nullptr : &b, own, i0, i1, j0, j1);
      held[slot] = {pass, j0};
    });
    k0 = k1;
  } while (k0 < k);
}

}  // namespace fastllm
