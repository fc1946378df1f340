// What attention's forward and backward share: the tile's size, products of tiles, and the scores of a strip of a tile.
//
// Tiles are walked in strips, as many rows as a register tile has. A strip computes only the columns that one of its
// rows sees, so along a causal diagonal half of a tile costs nothing; and its scores stay in L1 from their product to
// their last use.
#pragma once

#include <array>
#include <utility>

#include "common/parallel.h"
#include "cpu/attention.h"
#include "cpu/dropout_mask.h"
#include "cpu/register_tile.h"

namespace fastllm {

// Queries a tile: whole strips of every register tile (6, 12 and 2 rows). Keys a tile. In fp32 with D = 64 a tile of
// keys, as of values, is 16 KiB: both stay in L1 while the strips of queries pass.
constexpr int64_t kQueryTile = 96;
constexpr int64_t kKeyTile = 64;
constexpr int64_t kStripRows = kRegisterTileRows;

// `size` rounded up to whole vectors.
template <typename C>
constexpr int64_t padded(int64_t size) {
  return round_up(size, at::vec::Vectorized<C>::size());
}

// Arrays of these sizes in this thread's scratch memory, each starting a cache line.
template <typename C, size_t kCount>
std::array<C*, kCount> scratch_arrays(const int64_t (&sizes)[kCount]) {
  constexpr int64_t kLine = 64 / sizeof(C);
  int64_t total = 0;
  for (int64_t size : sizes) total += round_up(size, kLine);
  std::array<C*, kCount> arrays;
  C* next = scratch<C>(total);
  for (size_t i = 0; i < kCount; ++i) {
    arrays[i] = next;
    next += round_up(sizes[i], kLine);
  }
  return arrays;
}

// ---------------------------------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------------------------------

template <typename C, int kRows>
void product_rows(int64_t n, int64_t k, const RegisterTileRows<C>& a, const C* b, int64_t ldb, C* c, int64_t ldc,
                  bool accumulate) {
  using V = at::vec::Vectorized<C>;
  const auto columns = [&]<int kVecs>(int64_t j) __attribute__((always_inline)) {
    register_tile<C, kRows, kVecs>(k, a, b + j, ldb, [&](auto& sums) {
      unroll<kRows>([&](auto i) {
        unroll<kVecs>([&](auto v) {
          C* to = c + i * ldc + j + v * V::size();
          (accumulate ? V::loadu(to) + sums[i][v] : sums[i][v]).store(to);
        });
      });
    });
  };
  int64_t j = 0;
  for (; j + 2 * V::size() <= n; j += 2 * V::size()) columns.template operator()<2>(j);
  if (j < n) columns.template operator()<1>(j);
}

template <typename C, int... kRows>
constexpr auto product_rows_of(std::integer_sequence<int, kRows...>) {
  return std::array{&product_rows<C, kRows + 1>...};
}

// C (m x n) (+)= A (m x k) B (k x n); n is a multiple of the vector's size.
template <typename C>
void tile_product(int64_t m, int64_t n, int64_t k, const RegisterTileRows<C>& a, const C* b, int64_t ldb, C* c,
                  int64_t ldc, bool accumulate) {
  static constexpr auto kProducts = product_rows_of<C>(std::make_integer_sequence<int, kRegisterTileRows>{});
  for (int64_t i = 0; i < m; i += kRegisterTileRows) {
    const RegisterTileRows<C> rows{a.data + i * a.row_stride, a.row_stride, a.depth_stride};
    kProducts[std::min<int64_t>(m - i, kRegisterTileRows) - 1](n, k, rows, b, ldb, c + i * ldc, ldc, accumulate);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Loading and storing rows of a head
// ---------------------------------------------------------------------------------------------------------------------

// As the compute type, rows x width, padded with zeros to `stride`; scaled.
template <typename T>
void load_rows(const T* in, int64_t in_stride, int64_t rows, int64_t width, Compute<T> scale, Compute<T>* out,
               int64_t stride) {
  const Vec<T> factor(scale);
  for (int64_t r = 0; r < rows; ++r) {
    Compute<T>* to = out + r * stride;
    const T* from = in + r * in_stride;
    int64_t c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>) (vload(from + c) * factor).store(to + c);
    for (; c < width; ++c) to[c] = static_cast<Compute<T>>(from[c]) * scale;
    for (; c < stride; ++c) to[c] = 0;
  }
}

// The same transposed: width x rows, rows padded with zeros to `stride`.
template <typename T>
void load_transposed(const T* in, int64_t in_stride, int64_t rows, int64_t width, Compute<T>* out, int64_t stride) {
  for (int64_t c = 0; rows < stride && c < width; ++c) std::fill(out + c * stride + rows, out + (c + 1) * stride, 0);
#if defined(CPU_CAPABILITY_AVX512)
  constexpr int64_t kBlock = 16;
#else
  constexpr int64_t kBlock = 8;
#endif
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < width; c0 += kBlock) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
      if constexpr (std::is_same_v<T, float>) {
        if (r0 + kBlock <= rows && c0 + kBlock <= width) {
          at::vec::transpose_mxn<float, kBlock, kBlock>(in + r0 * in_stride + c0, in_stride, out + c0 * stride + r0,
                                                        stride);
          continue;
        }
      }
#endif
      for (int64_t r = r0; r < std::min(rows, r0 + kBlock); ++r)
        for (int64_t c = c0; c < std::min(width, c0 + kBlock); ++c)
          out[c * stride + r] = static_cast<Compute<T>>(in[r * in_stride + c]);
    }
  }
}

template <typename T>
void store_rows(const Compute<T>* in, int64_t stride, int64_t rows, int64_t width, Compute<T> scale, T* out,
                int64_t out_stride) {
  const Vec<T> factor(scale);
  for (int64_t r = 0; r < rows; ++r) {
    for_each_vec<T>(width, [&](int64_t c, auto, auto store) {
      store(out + r * out_stride + c, Vec<T>::loadu(in + r * stride + c) * factor);
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Scores
// ---------------------------------------------------------------------------------------------------------------------

// Keys that batch element b has.
template <typename T>
int64_t key_count(const Attention<T>& a, int64_t b) {
  return a.key_lengths ? a.key_lengths[b] : a.tk;
}

// Where query 0 of batch element b stands.
template <typename T>
int64_t first_position(const Attention<T>& a, int64_t b) {
  return a.ends ? a.shift + a.ends[b] : a.shift;
}

// Which part of the scores a tile is.
struct TileAt {
  int64_t b, h;
  int64_t query, queries;
  int64_t key, keys;
};

// Columns [begin, end) of a tile.
struct Columns {
  int64_t begin, end;
};

// What rows [row, row + rows) of a tile see: the keys that at least one of them does.
template <typename T>
Columns visible_columns(const Attention<T>& a, const TileAt& at, int64_t row, int64_t rows) {
  const int64_t position = at.query + row + first_position(a, at.b) - at.key;
  int64_t begin = position - a.left, end = position + rows + a.right;
  if (a.runs) {
    const Run* runs = a.runs + at.b * a.tq + at.query + row;
    begin = std::max(begin, runs[0].begin - at.key);
    end = std::min(end, runs[rows - 1].end - at.key);
  }
  begin = std::clamp<int64_t>(begin, 0, at.keys);
  return {begin, std::clamp<int64_t>(end, begin, at.keys)};
}

// Rows [begin, end) of a tile.
struct Rows {
  int64_t begin, end;
};

// Which rows of a tile see columns [column, column + columns): those that see at least one of them.
template <typename T>
Rows seeing_rows(const Attention<T>& a, const TileAt& at, int64_t column, int64_t columns) {
  const int64_t position = at.key + column - first_position(a, at.b) - at.query;
  int64_t begin = position - a.right, end = position + columns + a.left;
  if (a.runs) {
    const Run* runs = a.runs + at.b * a.tq + at.key + column;
    begin = std::max(begin, runs[0].begin - at.query);
    end = std::min(end, runs[columns - 1].end - at.query);
  }
  begin = std::clamp<int64_t>(begin, 0, at.queries);
  return {begin, std::clamp<int64_t>(end, begin, at.queries)};
}

// Rows of a tile and the columns that they compute: whole vectors around those they see.
struct Strip {
  int64_t row, rows;
  Columns columns;

  int64_t width() const { return columns.end - columns.begin; }
};

// Calls body(strip) for all strips of a tile that see something of it.
template <typename T, typename Body>
void for_each_strip(const Attention<T>& a, const TileAt& at, const Body& body) {
  using V = Vec<T>;
  for (int64_t row = 0; row < at.queries; row += kStripRows) {
    const int64_t rows = std::min(kStripRows, at.queries - row);
    const Columns seen = visible_columns(a, at, row, rows);
    if (seen.begin < seen.end)
      body(Strip{row, rows, {seen.begin / V::size() * V::size(), round_up(seen.end, V::size())}});
  }
}

// From products of queries (scaled) and keys to scores, for a strip; what a row does not see becomes -inf. `scores` is
// the strip's first row, column 0 of the tile. With softcap, `slopes`, if not null, receives its derivative.
template <typename T>
void finish_scores(const Attention<T>& a, const TileAt& at, const Strip& strip, Compute<T>* scores, int64_t stride,
                   Compute<T>* slopes = nullptr) {
  using C = Compute<T>;
  using V = Vec<T>;
  constexpr C kNever = -std::numeric_limits<C>::infinity();
  const Columns& columns = strip.columns;
  for (int64_t i = 0; i < strip.rows; ++i) {
    C* row = scores + i * stride;
    const int64_t query = at.query + strip.row + i;
    const Columns seen = visible_columns(a, at, strip.row + i, 1);
    if (a.softcap != C(0)) {
      for (int64_t j = columns.begin; j < columns.end; j += V::size()) {
        const V t = (V::loadu(row + j) * V(C(1) / a.softcap)).tanh();
        (t * V(a.softcap)).store(row + j);
        if (slopes) (V(C(1)) - t * t).store(slopes + i * stride + j);
      }
    }
    if (a.alibi_slopes) {
      const C slope = a.alibi_slopes[at.b * a.alibi_strides[0] + at.h * a.alibi_strides[1]];
      const int64_t position = query + first_position(a, at.b) - at.key;
      for (int64_t j = seen.begin; j < seen.end; ++j) row[j] -= slope * static_cast<C>(std::abs(position - j));
    }
    if (a.mask) {
      const int64_t* s = a.mask_strides;
      const C* mask = a.mask + at.b * s[0] + at.h * s[1] + query * s[2] + at.key * s[3];
      for (int64_t j = seen.begin; j < seen.end; ++j) row[j] += mask[j * s[3]];
    }
    std::fill(row + columns.begin, row + seen.begin, kNever);
    std::fill(row + seen.end, row + columns.end, kNever);
  }
}

// The dropout multipliers of one row of a strip; element 0 is of the strip's first column.
template <typename T>
const Compute<T>* row_multipliers(const Attention<T>& a, const TileAt& at, const Strip& strip, int64_t i,
                                  Compute<T>* buffer) {
  const int64_t row_length = round_up(a.tk, Philox::kElements);
  const int64_t row = (at.b * a.h + at.h) * a.tq + at.query + strip.row + i;
  return dropout_multipliers(*a.dropout, row * row_length + at.key + strip.columns.begin, strip.width(), buffer);
}

}  // namespace fastllm
