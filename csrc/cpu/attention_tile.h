// What attention's forward and backward share: the tile's size, products of tiles, and the scores of a tile.
#pragma once

#include "common/parallel.h"
#include "cpu/attention.h"
#include "cpu/dropout_mask.h"

namespace fastllm {

// Queries and keys a tile. In fp32 with D = 64 a tile of queries, keys, values or scores is 16 KiB, so what an inner
// step touches stays in L2 and its hot operand in L1.
constexpr int64_t kTile = 64;

template <typename C, int kRows>
inline void product_rows(int64_t n, int64_t k, const C* a, int64_t a_row, int64_t a_col, const C* b, int64_t ldb, C* c,
                         int64_t ldc, bool accumulate) {
  using V = at::vec::Vectorized<C>;
  constexpr int64_t kLane = V::size();
  for (int64_t j = 0; j < n; j += 2 * kLane) {  // b and c have room for whole pairs of vectors
    V acc[kRows][2];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      acc[i][0] = accumulate ? V::loadu(c + i * ldc + j) : V(C(0));
      acc[i][1] = accumulate ? V::loadu(c + i * ldc + j + kLane) : V(C(0));
    }
    for (int64_t p = 0; p < k; ++p) {
      const V b0 = V::loadu(b + p * ldb + j), b1 = V::loadu(b + p * ldb + j + kLane);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const V ai(a[i * a_row + p * a_col]);
        acc[i][0] = at::vec::fmadd(ai, b0, acc[i][0]);
        acc[i][1] = at::vec::fmadd(ai, b1, acc[i][1]);
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      acc[i][0].store(c + i * ldc + j);
      acc[i][1].store(c + i * ldc + j + kLane);
    }
  }
}

// C (m x n) (+)= A (m x k) B (k x n): element (i, p) of A is a[i * a_row + p * a_col]. Rows of B and C are padded to a
// multiple of padded<C>(); 6 x 2 accumulators, 2 vectors of B and one of A make 15 of AVX2's 16 registers.
template <typename C>
void tile_product(int64_t m, int64_t n, int64_t k, const C* a, int64_t a_row, int64_t a_col, const C* b, int64_t ldb,
                  C* c, int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) {
    product_rows<C, 6>(n, k, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  }
  for (; i + 2 <= m; i += 2) {
    product_rows<C, 2>(n, k, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
  }
  if (i < m) product_rows<C, 1>(n, k, a + i * a_row, a_row, a_col, b, ldb, c + i * ldc, ldc, accumulate);
}

// `size` rounded up to what tile_product writes.
template <typename C>
constexpr int64_t padded(int64_t size) {
  constexpr int64_t kPair = 2 * at::vec::Vectorized<C>::size();
  return (size + kPair - 1) / kPair * kPair;
}

// Rows of a head as the compute type, rows x width, padded with zeros to `stride`; scaled.
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
  for (int64_t c = 0; c < width; ++c) {
    Compute<T>* to = out + c * stride;
    for (int64_t r = rows; r < stride; ++r) to[r] = 0;
  }
  constexpr int64_t kBlock = 8;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < width; c0 += kBlock) {
#if defined(CPU_CAPABILITY_AVX2)
      if constexpr (std::is_same_v<T, float>) {
        if (r0 + kBlock <= rows && c0 + kBlock <= width) {
          at::vec::transpose_mxn<float, 8, 8>(in + r0 * in_stride + c0, in_stride, out + c0 * stride + r0, stride);
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

// Keys that batch element b has.
template <typename T>
int64_t key_count(const Attention<T>& a, int64_t b) {
  return a.key_lengths ? std::clamp<int64_t>(a.key_lengths[b], 0, a.tk) : a.tk;
}

// Which part of the scores a tile is.
struct TileAt {
  int64_t b, h;
  int64_t query, queries;
  int64_t key, keys;
};

// Adds the mask to raw scores and sets what may not be seen to -inf; columns past the keys too, up to `stride`.
template <typename T>
void mask_scores(const Attention<T>& a, const TileAt& at, Compute<T>* scores, int64_t stride) {
  using C = Compute<T>;
  constexpr C kNever = -std::numeric_limits<C>::infinity();
  const bool diagonal = a.causal && at.key + at.keys - 1 > at.query + a.causal_shift;
  for (int64_t i = 0; i < at.queries; ++i) {
    C* row = scores + i * stride;
    if (a.mask) {
      const int64_t* s = a.mask_strides;
      const C* mask = a.mask + at.b * s[0] + at.h * s[1] + (at.query + i) * s[2] + at.key * s[3];
      for (int64_t j = 0; j < at.keys; ++j) row[j] += mask[j * s[3]];
    }
    int64_t visible = at.keys;
    if (diagonal) visible = std::clamp<int64_t>(at.query + i + a.causal_shift - at.key + 1, 0, at.keys);
    std::fill(row + visible, row + stride, kNever);
  }
}

// The dropout multipliers of one row of a tile.
template <typename T>
const Compute<T>* row_multipliers(const Attention<T>& a, const TileAt& at, int64_t i, Compute<T>* buffer) {
  const int64_t row_length = ceil_div(a.tk, Philox::kElements) * Philox::kElements;
  const int64_t row = (at.b * a.h + at.h) * a.tq + at.query + i;
  return dropout_multipliers(*a.dropout, row * row_length + at.key, at.keys, buffer);
}

}  // namespace fastllm
