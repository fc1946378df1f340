// Attention backward, the gradient of queries, and delta for the kernels after it.
//
// Bound by arithmetic: 6 D operations a score, in three products of which each fragment from shared memory serves one
// mma of 16 rows. Keys and values of the next tile are copied meanwhile.
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

// Sums of output * grad_output over the warp's rows, from row 0 of `slice` on; lane r % 16 gets row r's. Two lanes
// share a row, so that loads of all rows are under way at once.
template <typename T>
__device__ __forceinline__ float sum_rows(const Slice& output, const Slice& grad_output, int row) {
  const int lane = threadIdx.x % kWarp, token = output.first + row + lane / 2;
  float sum = 0.0f;
  if (token < output.tokens) {
    const T* out = static_cast<const T*>(output.data) + token * output.token;
    const T* grad = static_cast<const T*>(grad_output.data) + token * grad_output.token;
    if (output.wide && grad_output.wide) {
      constexpr int kChunk = kWidest<T>;
#pragma unroll 4
      for (int c = lane % 2 * kChunk; c < output.width; c += 2 * kChunk) {
        float a[kChunk], b[kChunk];
        Packed<T, kChunk>::load(out + c).unpack(a);
        Packed<T, kChunk>::load(grad + c).unpack(b);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum = fmaf(a[i], b[i], sum);
      }
    } else {
      for (int c = lane % 2; c < output.width; c += 2) sum = fmaf(to_float(out[c]), to_float(grad[c]), sum);
    }
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  return __shfl_sync(kAllLanes, sum, lane % 16 * 2);
}

template <typename T, int kD>
__global__ void __launch_bounds__(Shape<T, kD>::kThreads, Shape<T, kD>::kBlocks)
    attention_backward_queries_kernel(AttentionParams p, AttentionGradients grads) {
  using S = Shape<T, kD>;
  using Area = BackwardShared<T, kD, S>;
  constexpr int kTiles = S::kColumns / kOctet, kOut = kD / S::kSplit / kOctet;
  Area* shared = shared_memory<Area>();
  const Tile<T, kD> query_tile{shared->row_left}, grad_tile{shared->row_right};
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4;
  const int row = warp / S::kSplit * 16, column = warp % S::kSplit * (kD / S::kSplit);

  const int heads = p.batch * p.heads, tiles = (p.queries + S::kRows - 1) / S::kRows;
  const int b = blockIdx.x % heads / p.heads, head = blockIdx.x % heads % p.heads;
  const int kv_head = head / (p.heads / p.kv_heads);
  const int first = (tiles - 1 - static_cast<int>(blockIdx.x / heads)) * S::kRows;
  const Scores<T, false> rules(p, b, head);
  const Slice grad_output = slice_of<T>(grads.grad_output, b, head, first, p.queries, p.value_channels);
  load_tile<T, kD, S::kRows, S::kThreads>(slice_of<T>(p.query, b, head, first, p.queries, p.channels), query_tile);
  load_tile<T, kD, S::kRows, S::kThreads>(grad_output, grad_tile);
  const Span seen = rules.seen_by(first, S::kRows);
  const int begin = seen.begin / S::kColumns * S::kColumns;
  const auto load = [&](int key) {
    const int stage = (key - begin) / S::kColumns % S::kStages;
    load_tile<T, kD, S::kColumns, S::kThreads>(slice_of<T>(p.key, b, kv_head, key, rules.keys(), p.channels),
                                               Tile<T, kD>{shared->left[stage]});
    load_tile<T, kD, S::kColumns, S::kThreads>(slice_of<T>(p.value, b, kv_head, key, rules.keys(), p.value_channels),
                                               Tile<T, kD>{shared->right[stage]});
  };
  if (begin < seen.end) load(begin);
  cp_async_commit();

  const int64_t first_query = (static_cast<int64_t>(b) * p.heads + head) * p.queries;
  {
    const Slice output = slice_of<T>(grads.output, b, head, first, p.queries, p.value_channels);
    float delta = sum_rows<T>(output, grad_output, row);  // of row `lane`, in the first 16 lanes
    const int query = first + row + lane;
    if (lane < 16 && column == 0) {
      QueryRow own = {};
      if (query < p.queries) {
        const int64_t at = first_query + query;
        const SoftmaxStatistics<float> of = grads.statistics[at];
        if (grads.residual_delta) delta += grads.residual_delta[at];
        own = {of.maximum, of.inverse_sum, delta * of.inverse_sum, 0.0f};
        grads.rows[at] = own;
      }
      shared->queries[row + lane] = own;  // for all warps after the loop's first barrier
    }
  }

  Fragments<kOut> out[1] = {};
  for (int key = begin, stage = 0; key < seen.end; key += S::kColumns, stage = (stage + 1) % S::kStages) {
    const bool more = key + S::kColumns < seen.end;
    if (S::kStages == 2) {
      if (more) load(key + S::kColumns);
      cp_async_commit();
    }
    cp_async_wait<S::kStages - 1>();
    __syncthreads();
    const Tile<T, kD> key_tile{shared->left[stage]}, value_tile{shared->right[stage]};
    Fragments<kTiles> scores[1] = {}, grad_scores[1] = {};
    add_rows_product<T, kD, 1>(query_tile, row, key_tile, scores);
    add_rows_product<T, kD, 1>(grad_tile, row, value_tile, grad_scores);
    gradients_of_scores<false>(rules, first + row, key, scores[0], grad_scores[0],
                               [&](int, int half) -> const QueryRow& { return shared->queries[row + g + 8 * half]; });
    add_product<T, kD, 1>(grad_scores, key_tile, column, out);
    __syncthreads();  // nobody needs these keys and values any more
    if (S::kStages == 1) {
      if (more) load(key + S::kColumns);
      cp_async_commit();
    }
  }
  cp_async_wait<0>();
  __syncthreads();  // for blocks that see nothing: the result goes through the queries' place
#pragma unroll
  for (int j = 0; j < kOut; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[0][j][i] *= p.scale;
  }
  const MutableHeads& to = grads.grad_query;
  store_rows<T, kD>(out[0], query_tile, row, column, static_cast<T*>(to.data) + b * to.batch + head * to.head,
                    {nullptr, to.token, first, p.queries, p.channels, to.wide});
}

}  // namespace

cudaError_t attention_backward_queries(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream) {
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return cudaSuccess;
  return dispatch_channels(p, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    using S = Shape<T, channels>;
    using Area = BackwardShared<T, channels, S>;
    static_assert(sizeof(Area) <= kMostShared);
    const dim3 grid(blocks_of(p.batch, p.heads, p.queries, S::kRows));
    return launch<attention_backward_queries_kernel<T, channels>>({grid, S::kThreads, sizeof(Area)}, stream, p, g);
  });
}

}  // namespace fastllm::cuda
