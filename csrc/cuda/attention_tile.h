// Tiles of attention in shared memory, and their products: on tensor cores in bfloat16 and float16, as fused
// multiply-adds in float32 (exact: no TF32).
//
// A warp computes rows 16 at a time. In every dtype its fragments are those of mma.m16n8k16: of each 16 x 8 tile, lane
// 4 g + t holds {(g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)}.
#pragma once

#include <climits>

#include "cuda/attention.h"
#include "cuda/packed.h"
#include "cuda/ptx.h"
#include "cuda/reduce.h"

namespace fastllm::cuda {

// Columns of 8 that kColumns are.
constexpr int kOctet = 8;

template <int kTiles>
using Fragments = float[kTiles][4];

// What a block may share on every GPU from sm_80 on: 99 KiB on sm_86, sm_89 and sm_120; an A100 has 163, an H100 227.
constexpr size_t kMostShared = 99 * 1024;

// Blocks of `rows` rows that hold all `tokens` of each head. 0 if a grid has not as many, and no grid of 0 launches.
inline unsigned blocks_of(int batch, int heads, int tokens, int rows) {
  const int64_t blocks = static_cast<int64_t>(batch) * heads * ((tokens + rows - 1) / rows);
  return blocks <= INT_MAX ? static_cast<unsigned>(blocks) : 0;
}

// Rows of kCols values in chunks of 16 bytes, which are swapped within a row so that 8 rows' chunks of one column lie
// in different banks.
template <typename T, int kCols>
struct Tile {
  static constexpr int kChunk = kWidest<T>, kChunks = kCols / kChunk;
  static_assert(kChunks % 8 == 0, "rows are multiples of 128 bytes");

  T* data;

  __device__ __forceinline__ T* at(int row, int col) const {
    return data + row * kCols + ((col / kChunk) ^ (row % 8)) * kChunk + col % kChunk;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Between global and shared memory
// ---------------------------------------------------------------------------------------------------------------------

// What of a (T, width) slice of a head fills a tile: rows [first, first + rows), and zeros where it ends.
struct Slice {
  const void* data;   // of token 0
  int64_t token;      // stride
  int first, tokens;  // tokens: where the slice ends
  int width;
  bool wide;  // its rows are aligned to 16 bytes, and its width is whole chunks
};

// The block's threads begin to copy a tile; it is there after cp_async_wait and a barrier.
template <typename T, int kCols, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(const Slice& slice, const Tile<T, kCols>& tile) {
  using TileT = Tile<T, kCols>;
  constexpr int kPieces = kRows * TileT::kChunks;
  static_assert(kPieces % kThreads == 0, "every thread copies as many chunks");
  const T* data = static_cast<const T*>(slice.data);
  const int thread = here(threadIdx.x);
#pragma unroll 8  // more would want more registers for addresses than there are
  for (int i = 0; i < kPieces / kThreads; ++i) {
    const int piece = i * kThreads + thread;
    const int row = piece / TileT::kChunks, col = piece % TileT::kChunks * TileT::kChunk;
    const int token = slice.first + row;
    const T* from = data + token * slice.token + col;
    if (slice.wide) {
      cp_async<16>(tile.at(row, col), from, token < slice.tokens && col < slice.width);
    } else {
      Pack<T, TileT::kChunk> pack;
#pragma unroll
      for (int j = 0; j < TileT::kChunk; ++j)
        pack.value[j] = token < slice.tokens && col + j < slice.width ? from[j] : T(0.0f);
      store_anywhere(tile.at(row, col), pack);
    }
  }
}

// A warp stores its 16 rows of a result, columns [column, column + 8 kTiles), by way of `tile`, whose part for these
// rows and columns nobody else uses.
template <typename T, int kCols, int kTiles>
__device__ __forceinline__ void store_rows(const Fragments<kTiles>& values, const Tile<T, kCols>& tile, int row,
                                           int column, void* data, const Slice& slice) {
  using TileT = Tile<T, kCols>;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float pair[2] = {values[j][2 * half], values[j][2 * half + 1]};
      const auto packed = Packed<T, 2>::pack(pair);
      store_anywhere(
          reinterpret_cast<typename Packed<T, 2>::Word*>(tile.at(row + g + 8 * half, column + kOctet * j + 2 * t)),
          packed.words);
    }
  }
  __syncwarp();
  T* const to = static_cast<T*>(data) + (slice.first + row) * slice.token;
  const int rows = slice.tokens - slice.first - row;  // 16, or those that there are
  if (!slice.wide) {
    constexpr int kRowValues = kTiles * kOctet;
#pragma unroll 1
    for (int i = lane; i < 16 * kRowValues; i += kWarp) {
      const int r = i / kRowValues, col = column + i % kRowValues;
      if (r < rows && col < slice.width) to[r * slice.token + col] = *tile.at(row + r, col);
    }
    return;
  }
  constexpr int kRowChunks = kTiles * kOctet / TileT::kChunk;
#pragma unroll
  for (int i = 0; i < 16 * kRowChunks / kWarp; ++i) {
    const int piece = i * kWarp + lane, r = piece / kRowChunks, col = column + piece % kRowChunks * TileT::kChunk;
    if (r < rows && col < slice.width)
      Packed<T, TileT::kChunk>::load(tile.at(row + r, col)).store(to + r * slice.token + col);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  mma_m16n8k16<T>(sum, a, b);
}

__device__ __forceinline__ void add_dot(float& sum, const Pack<float, 4>& a, const Pack<float, 4>& b) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum = fmaf(a.value[i], b.value[i], sum);
}

// sum[m] += rows [row + 16 m, row + 16 m + 16) of a, times b's first 8 kTiles rows transposed.
template <typename T, int kCols, int kM, int kTiles>
__device__ __forceinline__ void add_rows_product(const Tile<T, kCols>& a, int row, const Tile<T, kCols>& b,
                                                 Fragments<kTiles> (&sum)[kM]) {
  const int lane = here(threadIdx.x % kWarp);
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < kCols; k += 16) {
      uint32_t fa[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) ldmatrix_x4(fa[m], a.at(row + 16 * m + lane % 16, k + lane / 16 * 8));
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        uint32_t fb[4];
        ldmatrix_x4(fb, b.at(kOctet * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply<T>(sum[m][j], fa[m], fb[0], fb[1]);
          multiply<T>(sum[m][j + 1], fa[m], fb[2], fb[3]);
        }
      }
    }
  } else {
    static_assert(kM == 1, "float32 has no registers for more rows");
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int k = 0; k < kCols; k += 4) {
      const auto a0 = load<float, 4>(a.at(row + g, k)), a1 = load<float, 4>(a.at(row + g + 8, k));
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const auto b0 = load<float, 4>(b.at(kOctet * j + 2 * t, k)),
                   b1 = load<float, 4>(b.at(kOctet * j + 2 * t + 1, k));
        add_dot(sum[0][j][0], a0, b0);
        add_dot(sum[0][j][1], a0, b1);
        add_dot(sum[0][j][2], a1, b0);
        add_dot(sum[0][j][3], a1, b1);
      }
    }
  }
}

// sum[m] += a[m], 16 rows of 8 kDepth columns, times b's first 8 kDepth rows, columns [column, column + 8 kTiles).
template <typename T, int kCols, int kM, int kDepth, int kTiles>
__device__ __forceinline__ void add_product(const Fragments<kDepth> (&a)[kM], const Tile<T, kCols>& b, int column,
                                            Fragments<kTiles> (&sum)[kM]) {
  const int lane = here(threadIdx.x % kWarp);
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 2) {
      uint32_t fa[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // a pair of columns of k, k: rows g, g + 8; then of k + 1
          const float* values = a[m][k + i / 2];
          const float pair[2] = {values[i % 2 * 2], values[i % 2 * 2 + 1]};
          fa[m][i] = Packed<T, 2>::pack(pair).words.value[0];
        }
      }
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        uint32_t fb[4];
        ldmatrix_x4_trans(fb, b.at(kOctet * k + lane % 16, column + kOctet * j + lane / 16 * 8));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply<T>(sum[m][j], fa[m], fb[0], fb[1]);
          multiply<T>(sum[m][j + 1], fa[m], fb[2], fb[3]);
        }
      }
    }
  } else {
    static_assert(kM == 1, "float32 has no registers for more rows");
    const int t = lane % 4;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      __syncwarp();  // loads of b stay behind it, or they would wait in registers
#pragma unroll
      for (int i = 0; i < kOctet; ++i) {
        const float a0 = __shfl_sync(kAllLanes, a[0][k][i % 2], lane / 4 * 4 + i / 2);
        const float a1 = __shfl_sync(kAllLanes, a[0][k][2 + i % 2], lane / 4 * 4 + i / 2);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          const auto pair = load<float, 2>(b.at(kOctet * k + i, column + kOctet * j + 2 * t));
          sum[0][j][0] = fmaf(a0, pair.value[0], sum[0][j][0]);
          sum[0][j][1] = fmaf(a0, pair.value[1], sum[0][j][1]);
          sum[0][j][2] = fmaf(a1, pair.value[0], sum[0][j][2]);
          sum[0][j][3] = fmaf(a1, pair.value[1], sum[0][j][3]);
        }
      }
    }
  }
}

}  // namespace fastllm::cuda
