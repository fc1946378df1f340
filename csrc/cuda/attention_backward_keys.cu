// Attention backward, the gradients of keys and values. Scores are transposed: rows are keys, columns queries.
//
// Bound by arithmetic: 8 D operations a score, in four products of which each fragment from shared memory serves one
// mma of 16 rows. Queries, gradients and sums of the next tile are copied meanwhile. All heads of queries that share
// a head of keys pass one after the other, so that their sum needs no memory.
#include "cuda/attention_backward.h"

namespace fastllm::cuda {
namespace {

template <typename T, int kD>
struct Shape;
template <typename T>
struct Shape<T, 64> : BackwardShape<64, 64, 1, 2, 2> {};
template <typename T>
struct Shape<T, 128> : BackwardShape<64, 32, 1, 2, 2> {};
template <typename T>
struct Shape<T, 256> : BackwardShape<64, 32, 2, 1, 1> {};
template <>
struct Shape<float, 64> : BackwardShape<64, 32, 1, 2, 2> {};
template <>
struct Shape<float, 128> : BackwardShape<32, 32, 2, 2, 2> {};
template <>
struct Shape<float, 256> : BackwardShape<16, 32, 4, 1, 1> {};

template <typename T, int kD>
__global__ void __launch_bounds__(Shape<T, kD>::kThreads, Shape<T, kD>::kBlocks)
    attention_backward_keys_kernel(AttentionParams p, AttentionGradients grads) {
  using S = Shape<T, kD>;
  using Area = BackwardShared<T, kD, S>;
  constexpr int kTiles = S::kColumns / kOctet, kOut = kD / S::kSplit / kOctet;
  static_assert(S::kColumns <= S::kThreads, "a thread copies the row of a query");
  Area* shared = shared_memory<Area>();
  const Tile<T, kD> key_tile{shared->row_left}, value_tile{shared->row_right};
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, t = lane % 4;
  const int row = warp / S::kSplit * 16, column = warp % S::kSplit * (kD / S::kSplit);

  const int heads = p.batch * p.kv_heads, group = p.heads / p.kv_heads;
  const int b = blockIdx.x % heads / p.kv_heads, kv_head = blockIdx.x % heads % p.kv_heads;
  const int first = static_cast<int>(blockIdx.x / heads) * S::kRows;  // by causality the first keys have most work
  Scores<T, true> rules(p, b, kv_head * group);
  load_tile<T, kD, S::kRows, S::kThreads>(slice_of<T>(p.key, b, kv_head, first, p.keys, p.channels), key_tile);
  load_tile<T, kD, S::kRows, S::kThreads>(slice_of<T>(p.value, b, kv_head, first, p.keys, p.value_channels),
                                          value_tile);
  // Tiles of queries, of one head after the other.
  const Span seen = rules.seen_by(first, S::kRows);
  const int begin = seen.begin / S::kColumns * S::kColumns;
  const int tiles = (seen.end - begin + S::kColumns - 1) / S::kColumns,
            count = seen.begin < seen.end ? group * tiles : 0;
  const auto load = [&](int i) {
    const int stage = i % S::kStages, head = kv_head * group + i / tiles, query = begin + i % tiles * S::kColumns;
    load_tile<T, kD, S::kColumns, S::kThreads>(slice_of<T>(p.query, b, head, query, p.queries, p.channels),
                                               Tile<T, kD>{shared->left[stage]});
    load_tile<T, kD, S::kColumns, S::kThreads>(
        slice_of<T>(grads.grad_output, b, head, query, p.queries, p.value_channels), Tile<T, kD>{shared->right[stage]});
    if (threadIdx.x < S::kColumns) {
      const int at = query + here(threadIdx.x);
      const int64_t first_row = (static_cast<int64_t>(b) * p.heads + head) * p.queries;
      cp_async<16>(&shared->staged_queries[stage][threadIdx.x], grads.rows + first_row + at, at < p.queries);
    }
  };
  if (count > 0) load(0);
  cp_async_commit();

  Fragments<kOut> grad_key[1] = {}, grad_value[1] = {};
  for (int i = 0; i < count; ++i) {
    const int stage = i % S::kStages;
    if (S::kStages == 2) {
      if (i + 1 < count) load(i + 1);
      cp_async_commit();
    }
    cp_async_wait<S::kStages - 1>();
    __syncthreads();
    const Tile<T, kD> query_tile{shared->left[stage]}, grad_tile{shared->right[stage]};
    const QueryRow* queries = shared->staged_queries[stage] + 2 * t;
    rules.set_head(kv_head * group + i / tiles);
    Fragments<kTiles> scores[1] = {}, grad_scores[1] = {};
    add_rows_product<T, kD, 1>(key_tile, row, query_tile, scores);
    add_rows_product<T, kD, 1>(value_tile, row, grad_tile, grad_scores);
    gradients_of_scores<false>(rules, first + row, begin + i % tiles * S::kColumns, scores[0], grad_scores[0],
                               [&](int j, int query) -> const QueryRow& { return queries[kOctet * j + query]; });
    add_product<T, kD, 1>(scores, grad_tile, column, grad_value);
    add_product<T, kD, 1>(grad_scores, query_tile, column, grad_key);
    __syncthreads();  // nobody needs these queries any more
    if (S::kStages == 1) {
      if (i + 1 < count) load(i + 1);
      cp_async_commit();
    }
  }
  cp_async_wait<0>();
  __syncthreads();  // for blocks that see nothing: results go through the keys' and values' places
#pragma unroll
  for (int j = 0; j < kOut; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) grad_key[0][j][i] *= p.scale;
  }
  const auto store = [&](const Fragments<kOut>& values, const Tile<T, kD>& tile, const MutableHeads& to, int width) {
    store_rows<T, kD>(values, tile, row, column, static_cast<T*>(to.data) + b * to.batch + kv_head * to.head,
                      {nullptr, to.token, first, p.keys, width, to.wide});
  };
  store(grad_key[0], key_tile, grads.grad_key, p.channels);
  store(grad_value[0], value_tile, grads.grad_value, p.value_channels);
}

}  // namespace

cudaError_t attention_backward_keys(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream) {
  if (p.batch == 0 || p.kv_heads == 0 || p.keys == 0) return cudaSuccess;
  return dispatch_channels(p, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    using S = Shape<T, channels>;
    using Area = BackwardShared<T, channels, S>;
    static_assert(sizeof(Area) <= kMostShared);
    const dim3 grid(blocks_of(p.batch, p.kv_heads, p.keys, S::kRows));
    return launch<attention_backward_keys_kernel<T, channels>>({grid, S::kThreads, sizeof(Area)}, stream, p, g);
  });
}

}  // namespace fastllm::cuda
