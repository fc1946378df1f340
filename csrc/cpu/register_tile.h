// The inner loop of every matrix product here: a few rows of C by one or two vectors of columns, held in registers
// while all of K passes. For every k a row of B is loaded, and each of the tile's A values is broadcast and multiplied
// into its row of accumulators.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <c10/util/Unroll.h>

#include <cstdint>

namespace fastllm {

// The tallest tile. Registers: its rows x 2 accumulators, 2 vectors of B, 1 broadcast value of A.
// Both of a core's FMA units are full with 8 or more independent accumulators (latency 4 x 2 units).
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int kRegisterTileRows = 12;  // 24 + 2 + 1 = 27 of 32
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kRegisterTileRows = 6;  // 12 + 2 + 1 = 15 of 16
#else
constexpr int kRegisterTileRows = 2;  // a Vec is two SSE registers: (4 + 2) x 2 + 1 = 13 of 16
#endif

// Where a tile finds A(i, k): data[i * row_stride + k * depth_stride].
template <typename C>
struct RegisterTileRows {
  const C* data;
  int64_t row_stride, depth_stride;
};

// Calls body(0) .. body(count - 1), unrolled before the compiler decides which arrays live in registers.
template <int count, typename Body>
C10_ALWAYS_INLINE void unroll(const Body& body) {
  c10::ForcedUnroll<count>{}(body);
}

// Calls write(sums), where sums[i][v] is the vector v of row i of A (kRows x depth) times B (depth x kVecs vectors,
// b_stride elements from one row to the next).
template <typename C, int kRows, int kVecs, typename Write>
C10_ALWAYS_INLINE void register_tile(int64_t depth, const RegisterTileRows<C>& a, const C* b, int64_t b_stride,
                                     const Write& write) {
  using V = at::vec::Vectorized<C>;
  V sums[kRows][kVecs];
  int64_t rows[kRows];
  unroll<kRows>([&](auto i) {
    rows[i] = i * a.row_stride;
    unroll<kVecs>([&](auto v) { sums[i][v] = V(C(0)); });
  });
  // Not unrolled over k: the 12 multiply-adds of a step take longer than its other instructions, and with several steps
  // to choose from the compiler moves loads up until registers spill.
  const C* a_column = a.data;
  for (int64_t k = 0; k < depth; ++k, a_column += a.depth_stride, b += b_stride) {
    V b_row[kVecs];
    unroll<kVecs>([&](auto v) { b_row[v] = V::loadu(b + v * V::size()); });
    unroll<kRows>([&](auto i) {
      const V a_value(a_column[rows[i]]);
      unroll<kVecs>([&](auto v) { sums[i][v] = at::vec::fmadd(a_value, b_row[v], sums[i][v]); });
    });
  }
  write(sums);
}

}  // namespace fastllm
