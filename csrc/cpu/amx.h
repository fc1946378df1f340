// AMX: a core's eight tiles, each of 16 rows of 64 bytes, and the product of two of them. (Intel, "Intel 64 and IA-32
// Architectures Software Developer's Manual", volume 1, chapter 18.)
//
//   C (16 x 16 floats) += A (16 rows of 16 pairs of bfloat16) B (16 pairs of bfloat16 of 16 columns)
//
// A holds in row i the pairs (2p, 2p + 1) along k; B holds in row p the pairs of its 16 columns. So a tile of A is a
// piece of a matrix whose rows run along k, and a tile of B the transpose, pair by pair, of one of A.
#pragma once

#include <immintrin.h>

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>

#include "cpu/register_tile.h"

namespace fastllm::amx {

constexpr int64_t kRows = 16;   // of a tile
constexpr int64_t kPairs = 16;  // of bfloat16 in a row
constexpr int64_t kDepth = 2 * kPairs;
constexpr int64_t kTileElements = kRows * kDepth;  // of bfloat16: 1 KiB
constexpr int64_t kTileFloats = kRows * kPairs;
constexpr int64_t kRowBytes = 64;
constexpr int64_t kSide = 2 * kRows;  // rows, and columns, of the blocks that products are made of: two tiles each way
static_assert(kRows == kPairs);

// Instructions on tiles read memory behind the compiler's back (g++'s intrinsics are assembly that does not say so):
// what was stored before must be in memory by now.
inline void settle() {
  __asm__ volatile("" ::: "memory");
}

// The tiles are this thread's, all of full size, as long as this object lives.
class Tiles {
 public:
  Tiles() {
    static constexpr Config config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes};
    uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
  };
  static_assert(sizeof(Config) == 64);
};

// ---------------------------------------------------------------------------------------------------------------------
// Making tiles: 16 registers, each a row
// ---------------------------------------------------------------------------------------------------------------------

struct TileRows {
  __m512i row[16];

  void store(c10::BFloat16* tile) const {
    unroll<16>([&](auto i) { _mm512_store_si512(tile + i * kDepth, row[i]); });
  }

  // Rows become columns, in units of 32 bits: pairs, or floats.
  void transpose() {
    __m512i t[16];
    unroll<8>([&](auto i) {  // in each 128-bit lane: 2 x 2 of 32 bits
      t[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    });
    unroll<4>([&](auto i) {  // 4 x 4 of 32 bits
      row[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      row[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      row[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      row[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    });
    unroll<4>([&](auto j) {  // and 4 x 4 of the lanes
      const __m512i a = _mm512_shuffle_i32x4(row[j], row[4 + j], 0x88);
      const __m512i b = _mm512_shuffle_i32x4(row[j], row[4 + j], 0xDD);
      const __m512i c = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0x88);
      const __m512i d = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0xDD);
      t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
      t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
      t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xDD);
      t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xDD);
    });
    unroll<16>([&](auto i) { row[i] = t[i]; });
  }
};

inline __mmask32 first(int64_t count) {
  return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << std::max<int64_t>(count, 0)) - 1;
}

inline __m512 widen(__mmask16 lanes, const c10::BFloat16* data) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, data)), 16));
}

// 16 rows of 32 elements that run along k; past `rows` and `depth` zeros.
inline TileRows load_along(const c10::BFloat16* data, int64_t stride, int64_t rows, int64_t depth) {
  TileRows tile;
  if (rows >= kRows && depth >= kDepth) {
    unroll<16>([&](auto i) { tile.row[i] = _mm512_loadu_si512(data + i * stride); });
  } else {
    const __mmask32 mask = first(depth);
    unroll<16>([&](auto i) {
      tile.row[i] = i < rows ? _mm512_maskz_loadu_epi16(mask, data + i * stride) : _mm512_setzero_si512();
    });
  }
  return tile;
}

// From 32 rows of 32 elements, rows k and columns of B: the two tiles of B. Past `depth` and `columns` zeros.
inline void load_across(const c10::BFloat16* data, int64_t stride, int64_t depth, int64_t columns, TileRows& left,
                        TileRows& right) {
  const __mmask32 mask = first(columns);
  const __m512i in_pairs = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                            37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i upper = _mm512_add_epi16(in_pairs, _mm512_set1_epi16(16));
  unroll<16>([&](auto i) {
    const int64_t k = 2 * i;
    const __m512i even = k < depth ? _mm512_maskz_loadu_epi16(mask, data + k * stride) : _mm512_setzero_si512();
    const __m512i odd =
        k + 1 < depth ? _mm512_maskz_loadu_epi16(mask, data + (k + 1) * stride) : _mm512_setzero_si512();
    left.row[i] = _mm512_permutex2var_epi16(even, in_pairs, odd);
    right.row[i] = _mm512_permutex2var_epi16(even, upper, odd);
  });
}

// How an operand lies in memory: its rows run along k, or across, each a k of its own.
enum class Runs { kAlong, kAcross };
enum class Side { kA, kB };

// Copies `count` rows of A, or columns of B, and `depth` of k to panels of kSide of them, one after the other; in each
// the tiles of a step of kDepth, then those of the next. Zeros fill what tiles have more.
template <Runs runs, Side side>
void pack(const c10::BFloat16* data, int64_t stride, int64_t count, int64_t depth, c10::BFloat16* out) {
  for (int64_t i = 0; i < count; i += kSide)
    for (int64_t k = 0; k < depth; k += kDepth, out += 2 * kTileElements) {
      TileRows tiles[2];
      if constexpr (runs == Runs::kAlong) {
        for (int64_t t = 0; t < 2; ++t) {
          const c10::BFloat16* rows = data + (i + t * kRows) * stride + k;
          // The rows that follow: a core that walks down 16 rows is one that its own prefetching does not serve.
          for (int64_t r = kSide; r < kSide + kRows; ++r) _mm_prefetch(rows + r * stride, _MM_HINT_T0);
          tiles[t] = load_along(rows, stride, count - i - t * kRows, depth - k);
        }
      } else {
        load_across(data + k * stride + i, stride, depth - k, count - i, tiles[0], tiles[1]);
      }
      for (int64_t t = 0; t < 2; ++t) {
        if constexpr ((runs == Runs::kAlong) == (side == Side::kB)) tiles[t].transpose();
        tiles[t].store(out + t * kTileElements);
      }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------------------------------

// Elements of a step of a panel: two tiles.
constexpr int64_t kStep = 2 * kTileElements;

// Tiles 0 .. 3 hold C, kA x kB of them: += A B over `steps` of two panels.
template <int kA, int kB>
C10_ALWAYS_INLINE void multiply(int64_t steps, const c10::BFloat16* a, const c10::BFloat16* b) {
  settle();
  for (int64_t step = 0; step < steps; ++step, a += kStep, b += kStep) {
    _tile_loadd(4, a, kRowBytes);
    _tile_loadd(6, b, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kB == 2) {
      _tile_loadd(7, b + kTileElements, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kA == 2) {
      _tile_loadd(5, a + kTileElements, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kB == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// C's tiles, from zero or from memory, and to memory: 2 x 2 tiles of floats, `stride` floats from row to row.
template <int kA, int kB>
C10_ALWAYS_INLINE void zero_sums() {
  _tile_zero(0);
  if constexpr (kB == 2) _tile_zero(1);
  if constexpr (kA == 2) _tile_zero(2);
  if constexpr (kA == 2 && kB == 2) _tile_zero(3);
}

template <int kA, int kB>
C10_ALWAYS_INLINE void load_sums(const float* c, int64_t stride) {
  const int64_t bytes = stride * sizeof(float);
  settle();
  _tile_loadd(0, c, bytes);
  if constexpr (kB == 2) _tile_loadd(1, c + kPairs, bytes);
  if constexpr (kA == 2) _tile_loadd(2, c + kRows * stride, bytes);
  if constexpr (kA == 2 && kB == 2) _tile_loadd(3, c + kRows * stride + kPairs, bytes);
}

template <int kA, int kB>
C10_ALWAYS_INLINE void store_sums(float* c, int64_t stride) {
  const int64_t bytes = stride * sizeof(float);
  _tile_stored(0, c, bytes);
  if constexpr (kB == 2) _tile_stored(1, c + kPairs, bytes);
  if constexpr (kA == 2) _tile_stored(2, c + kRows * stride, bytes);
  if constexpr (kA == 2 && kB == 2) _tile_stored(3, c + kRows * stride + kPairs, bytes);
}

// Calls body.operator()<kA, kB>() for how many of two tiles are needed each way.
template <typename Body>
C10_ALWAYS_INLINE void with_tiles(bool two_rows, bool two_columns, const Body& body) {
  if (two_rows)
    two_columns ? body.template operator()<2, 2>() : body.template operator()<2, 1>();
  else
    two_columns ? body.template operator()<1, 2>() : body.template operator()<1, 1>();
}

// Panels as `pack` makes them, or from one of their steps on.
struct Panels {
  const c10::BFloat16* data;
  int64_t stride;  // elements from one to the next

  const c10::BFloat16* at(int64_t first) const { return data + first / kSide * stride; }
};

// C (rows x columns, `stride` floats from row to row) = A B, or += A B. It may touch C up to whole tiles.
inline void product(int64_t rows, int64_t columns, int64_t steps, const Panels& a, const Panels& b, float* c,
                    int64_t stride, bool accumulate) {
  for (int64_t i = 0; i < rows; i += kSide)
    for (int64_t j = 0; j < columns; j += kSide)
      with_tiles(rows - i > kRows, columns - j > kPairs, [&]<int kA, int kB>() {
        float* block = c + i * stride + j;
        accumulate ? load_sums<kA, kB>(block, stride) : zero_sums<kA, kB>();
        multiply<kA, kB>(steps, a.at(i), b.at(j));
        store_sums<kA, kB>(block, stride);
      });
}

}  // namespace fastllm::amx
