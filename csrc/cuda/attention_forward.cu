// Attention forward (Dao, "FlashAttention-2", 2023): a block takes a tile of queries, and tiles of keys and values pass
// under an online softmax, so that scores exist in registers alone.
//
// Bound by arithmetic: 4 D operations a score, and one exponential. In bf16 and fp16 mma.sync reaches about 60% of what
// wgmma would on an H100. Each fragment of keys or values that a warp reads from shared memory, 256 bytes, serves
// kM mma: with two, shared memory gives what the tensor cores take. Keys of the next tile are copied while values are
// multiplied, values while keys are. Blocks with most work, by causality the last queries, go first.
#include "cuda/attention.h"

#include "cuda/attention_scores.h"
#include "cuda/attention_tile.h"
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// A block's warps have kM * 16 queries each, or kSplit of them have the same and a part of the values' channels each.
// Its tiles of keys have kKeys. kBlocks are meant to fit a multiprocessor.
template <int warps, int m, int split, int keys, int blocks>
struct ShapeOf {
  static constexpr int kM = m, kSplit = split, kKeys = keys, kBlocks = blocks;
  static constexpr int kThreads = warps * kWarp, kQueries = warps / split * m * 16;
};
template <typename T, int kD>
struct Shape;
template <typename T>
struct Shape<T, 64> : ShapeOf<4, 2, 1, 64, 2> {};
template <typename T>
struct Shape<T, 128> : ShapeOf<4, 2, 1, 32, 2> {};
template <typename T>
struct Shape<T, 256> : ShapeOf<4, 1, 1, 32, 2> {};
template <>
struct Shape<float, 64> : ShapeOf<4, 1, 1, 64, 2> {};
template <>
struct Shape<float, 128> : ShapeOf<4, 1, 2, 32, 2> {};
template <>
struct Shape<float, 256> : ShapeOf<4, 1, 2, 32, 2> {};

template <typename T, int kD>
struct Shared {
  using S = Shape<T, kD>;
  alignas(16) T query[S::kQueries * kD];
  alignas(16) T key[S::kKeys * kD];
  alignas(16) T value[S::kKeys * kD];
};

struct OnlineSoftmax {
  float maximum = -INFINITY, sum = 0.0f;  // sum: of this lane's columns

  // Scores of a row, 2 of each tile, become weights relative to the greatest so far. Returns what the weights so far
  // are to be multiplied with.
  template <bool kProducts, typename Rules, int kTiles>
  __device__ __forceinline__ float update(const Rules& rules, Fragments<kTiles>& scores, int half) {
    float next = maximum;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) next = fmaxf(next, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
    next = fmaxf(next, __shfl_xor_sync(kAllLanes, next, 1));
    next = fmaxf(next, __shfl_xor_sync(kAllLanes, next, 2));
    // Nothing seen yet: 2^-inf is the 0 that is meant.
    const float shift = next == -INFINITY ? 0.0f : rules.template shift_of<kProducts>(next);
    const float correction = exp2_fast(rules.template exponent<kProducts>(maximum, shift));
    float added = 0.0f;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[j][i] = exp2_fast(rules.template exponent<kProducts>(scores[j][i], shift));
        added += scores[j][i];
      }
    }
    maximum = next;
    sum = fmaf(sum, correction, added);
    return correction;
  }

  __device__ __forceinline__ void finish() {
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
  }
};

template <typename T, int kD>
__global__ void __launch_bounds__(Shape<T, kD>::kThreads, Shape<T, kD>::kBlocks)
    attention_forward_kernel(AttentionParams p, MutableHeads output, SoftmaxStatistics<float>* statistics) {
  using S = Shape<T, kD>;
  constexpr int kM = S::kM, kTiles = S::kKeys / kOctet, kOut = kD / S::kSplit / kOctet;
  Shared<T, kD>* shared = shared_memory<Shared<T, kD>>();
  const Tile<T, kD> query_tile{shared->query}, key_tile{shared->key}, value_tile{shared->value};
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;

  const int heads = p.batch * p.heads, tiles = (p.queries + S::kQueries - 1) / S::kQueries;
  const int b = blockIdx.x % heads / p.heads, head = blockIdx.x % heads % p.heads;
  const int kv_head = head / (p.heads / p.kv_heads);
  const int first = (tiles - 1 - static_cast<int>(blockIdx.x / heads)) * S::kQueries;
  const int warp = threadIdx.x / kWarp;
  const int row = warp / S::kSplit * kM * 16, column = warp % S::kSplit * (kD / S::kSplit);  // in the result's tile
  const Scores<T, false> rules(p, b, head);

  const auto slice = [&](const Heads& of, int h, int token, int tokens, int width) {
    return Slice{static_cast<const T*>(of.data) + b * of.batch + h * of.head, of.token, token, tokens, width, of.wide};
  };
  const Span seen = rules.seen_by(first, S::kQueries);
  const int begin = seen.begin / S::kKeys * S::kKeys;
  const auto load_keys = [&](int key) {
    load_tile<T, kD, S::kKeys, S::kThreads>(slice(p.key, kv_head, key, rules.keys(), p.channels), key_tile);
    cp_async_commit();
  };
  const auto load_values = [&](int key) {
    load_tile<T, kD, S::kKeys, S::kThreads>(slice(p.value, kv_head, key, rules.keys(), p.value_channels), value_tile);
    cp_async_commit();
  };
  load_tile<T, kD, S::kQueries, S::kThreads>(slice(p.query, head, first, p.queries, p.channels), query_tile);
  cp_async_commit();
  if (begin < seen.end) load_keys(begin);

  OnlineSoftmax softmax[kM][2];
  Fragments<kOut> out[kM] = {};
  for (int key = begin; key < seen.end; key += S::kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, and nobody needs the last values
    load_values(key);
    Fragments<kTiles> scores[kM] = {};
    add_rows_product<T, kD, kM>(query_tile, row, key_tile, scores);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int top = here(first + row + 16 * m);
      if (!rules.are_products() || !rules.is_whole(top, 16, key, S::kKeys)) {
        const Span spans[2] = {rules.seen_by(top + g), rules.seen_by(top + g + 8)};
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          float masked[4];
          rules.load_mask(top + g, key + kOctet * j + 2 * t, masked);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = key + kOctet * j + 2 * t + i % 2;
            float slope;
            if (!spans[i / 2].has(at)) {
              scores[m][j][i] = -INFINITY;
            } else if (!rules.are_products()) {
              scores[m][j][i] = rules.score(scores[m][j][i], top + g + 8 * (i / 2), at, masked[i], slope);
            }
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float correction = rules.are_products() ? softmax[m][half].template update<true>(rules, scores[m], half)
                                                      : softmax[m][half].template update<false>(rules, scores[m], half);
#pragma unroll
        for (int j = 0; j < kOut; ++j) {
          out[m][j][2 * half] *= correction;
          out[m][j][2 * half + 1] *= correction;
        }
      }
      if (rules.drops()) {  // after the sums: dropout acts on normalised weights
        uint32_t draw[kTiles][2];
        rules.draw(top, key, draw);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) scores[m][j][i] *= rules.factor(draw[j], i);
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // the values are there, and nobody needs these keys
    if (key + S::kKeys < seen.end) load_keys(key + S::kKeys);
    add_product<T, kD, kM>(scores, value_tile, column, out);
  }
  cp_async_wait<0>();  // a block that sees nothing still has its queries under way,
  __syncthreads();     // into the rows that the results go through

#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      OnlineSoftmax& row_softmax = softmax[m][half];
      row_softmax.finish();
      // A row that sees nothing: its output is 0, and its statistics make its weights 0 again.
      const bool empty = row_softmax.sum == 0.0f;
      const float scale = empty ? 0.0f : 1.0f / row_softmax.sum;
#pragma unroll
      for (int j = 0; j < kOut; ++j) {
        out[m][j][2 * half] *= scale;
        out[m][j][2 * half + 1] *= scale;
      }
      if (p.residual) {
#pragma unroll
        for (int j = 0; j < kOut; ++j) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) out[m][j][i] -= to_float(from_float<T>(out[m][j][i]));
        }
      }
      const int query = first + row + 16 * m + g + 8 * half;
      if (t == 0 && column == 0 && query < p.queries) {
        const float shift = rules.are_products() ? rules.template shift_of<true>(row_softmax.maximum)
                                                 : rules.template shift_of<false>(row_softmax.maximum);
        statistics[(static_cast<int64_t>(b) * p.heads + head) * p.queries + query] = {empty ? 0.0f : shift, scale};
      }
    }
    __syncwarp();
    store_rows<T, kD>(out[m], query_tile, row + 16 * m, column,
                      static_cast<T*>(output.data) + b * output.batch + head * output.head,
                      {nullptr, output.token, first, p.queries, p.value_channels, output.wide});
  }
}

template <typename T, int kD>
cudaError_t launch_shape(const AttentionParams& p, const MutableHeads& output, SoftmaxStatistics<float>* statistics,
                         cudaStream_t stream) {
  using S = Shape<T, kD>;
  static_assert(sizeof(Shared<T, kD>) <= kMostShared);
  const dim3 grid(blocks_of(p.batch, p.heads, p.queries, S::kQueries));
  return launch<attention_forward_kernel<T, kD>>({grid, S::kThreads, sizeof(Shared<T, kD>)}, stream, p, output,
                                                 statistics);
}

}  // namespace

cudaError_t attention_forward(const AttentionParams& p, const MutableHeads& output,
                              SoftmaxStatistics<float>* statistics, cudaStream_t stream) {
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return cudaSuccess;
  return dispatch_channels(p, [&](auto type, auto channels) {
    return launch_shape<typename decltype(type)::type, channels>(p, output, statistics, stream);
  });
}

}  // namespace fastllm::cuda
