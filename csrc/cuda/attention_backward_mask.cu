// Attention backward, the gradient of a learned bias: the scores' gradients, summed over what the bias is broadcast to.
//
// A block makes one tile of the bias, and goes through the batch elements, heads, queries and keys that share it, in
// order, with the two products of each. Biases are rare and this is their only cost; nothing is copied ahead.
#include "cuda/attention_backward.h"

namespace fastllm::cuda {
namespace {

template <typename T, int kD>
struct Shape : BackwardShape<64, 32, 1, 1, 1> {};
template <int kD>
struct Shape<float, kD> : BackwardShape<32, 32, 1, 1, 1> {};
template <>
struct Shape<float, 256> : BackwardShape<16, 32, 1, 1, 1> {};

// What of one dimension shares the elements that a block makes: [first, end) by steps.
struct Sharing {
  int first, end, step;
};

// Of a dimension in tiles of `tile`, the block's part, which is taken off `index`.
__device__ __forceinline__ Sharing sharing(bool broadcast, int size, int tile, int& index) {
  if (broadcast) return {0, size, tile};
  const int tiles = (size + tile - 1) / tile, first = index % tiles * tile;
  index /= tiles;
  return {first, min(first + tile, size), tile};
}

template <typename T, int kD>
__global__ void __launch_bounds__(Shape<T, kD>::kThreads, 1)
    attention_backward_mask_kernel(AttentionParams p, AttentionGradients grads) {
  using S = Shape<T, kD>;
  using Area = BackwardShared<T, kD, S>;
  constexpr int kTiles = S::kColumns / kOctet;
  Area* shared = shared_memory<Area>();
  const Tile<T, kD> query_tile{shared->row_left}, grad_tile{shared->row_right};
  const Tile<T, kD> key_tile{shared->left[0]}, value_tile{shared->right[0]};
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, row = static_cast<int>(threadIdx.x) / kWarp * 16;

  const int64_t* strides = grads.grad_mask_strides;
  int index = static_cast<int>(blockIdx.x);
  const Sharing keys = sharing(strides[3] == 0, p.keys, S::kColumns, index);
  const Sharing queries = sharing(strides[2] == 0, p.queries, S::kRows, index);
  const Sharing heads = sharing(strides[1] == 0, p.heads, 1, index);
  const Sharing batch = sharing(strides[0] == 0, p.batch, 1, index);

  Fragments<kTiles> sum = {};
  for (int b = batch.first; b < batch.end; ++b) {
    for (int head = heads.first; head < heads.end; ++head) {
      const int kv_head = head / (p.heads / p.kv_heads);
      const Scores<T, false> rules(p, b, head);
      const int64_t first_query = (static_cast<int64_t>(b) * p.heads + head) * p.queries;
      for (int query = queries.first; query < queries.end; query += queries.step) {
        const Span seen = rules.seen_by(query, S::kRows);
        const int top = query + row + g;
        QueryRow of_query[2] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (top + 8 * half < p.queries) of_query[half] = grads.rows[first_query + top + 8 * half];
        }
        for (int key = keys.first; key < keys.end; key += keys.step) {
          if (key >= seen.end || key + S::kColumns <= seen.begin) continue;
          const auto load = [&](const Heads& of, int h, int token, int tokens, int width, auto rows, T* to) {
            load_tile<T, kD, decltype(rows)::value, S::kThreads>(slice_of<T>(of, b, h, token, tokens, width),
                                                                 Tile<T, kD>{to});
          };
          const std::integral_constant<int, S::kRows> rows;
          const std::integral_constant<int, S::kColumns> columns;
          load(p.query, head, query, p.queries, p.channels, rows, query_tile.data);
          load(grads.grad_output, head, query, p.queries, p.value_channels, rows, grad_tile.data);
          load(p.key, kv_head, key, p.keys, p.channels, columns, key_tile.data);
          load(p.value, kv_head, key, p.keys, p.value_channels, columns, value_tile.data);
          cp_async_commit();
          cp_async_wait<0>();
          __syncthreads();
          Fragments<kTiles> scores[1] = {}, grad_scores[1] = {};
          add_rows_product<T, kD, 1>(query_tile, row, key_tile, scores);
          add_rows_product<T, kD, 1>(grad_tile, row, value_tile, grad_scores);
          gradients_of_scores<true>(rules, query + row, key, scores[0], grad_scores[0],
                                    [&](int, int half) -> const QueryRow& { return of_query[half]; });
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[j][i] += grad_scores[0][j][i];
          }
          __syncthreads();  // nobody needs these tiles any more
        }
      }
    }
  }

  // Over rows and columns too, where they share elements; by way of shared memory, in order.
  float (*sums)[S::kColumns] = reinterpret_cast<float (*)[S::kColumns]>(shared);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[row + g + 8 * (i / 2)][kOctet * j + 2 * t + i % 2] = sum[j][i];
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (strides[2] == 0) {
    for (int i = 1; i < S::kRows && thread < S::kColumns; ++i) sums[0][thread] += sums[i][thread];
    __syncthreads();
  }
  const int rows = strides[2] == 0 ? 1 : queries.end - queries.first;
  if (strides[3] == 0) {
    for (int j = 1; j < S::kColumns && thread < rows; ++j) sums[thread][0] += sums[thread][j];
    __syncthreads();
  }
  const int columns = strides[3] == 0 ? 1 : keys.end - keys.first;
  float* to = grads.grad_mask + batch.first * strides[0] + heads.first * strides[1] + queries.first * strides[2] +
              keys.first * strides[3];
  for (int i = thread; i < rows * columns; i += S::kThreads)
    to[i / columns * strides[2] + i % columns * strides[3]] = sums[i / columns][i % columns];
}

}  // namespace

cudaError_t attention_backward_mask(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream) {
  const bool empty = p.batch == 0 || p.heads == 0 || p.queries == 0 || p.keys == 0;
  if (g.grad_mask == nullptr || empty) return cudaSuccess;
  return dispatch_channels(p, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    using S = Shape<T, channels>;
    using Area = BackwardShared<T, channels, S>;
    static_assert(sizeof(Area) <= kMostShared);
    const auto tiles = [&](int dim, int size, int tile) {
      return g.grad_mask_strides[dim] == 0 ? 1u : static_cast<unsigned>((size + tile - 1) / tile);
    };
    const dim3 grid(tiles(0, p.batch, 1) * tiles(1, p.heads, 1) * tiles(2, p.queries, S::kRows) *
                    tiles(3, p.keys, S::kColumns));
    return launch<attention_backward_mask_kernel<T, channels>>({grid, S::kThreads, sizeof(Area)}, stream, p, g);
  });
}

cudaError_t attention_backward(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream) {
  for (const auto part : {attention_backward_queries, attention_backward_keys, attention_backward_mask}) {
    const cudaError_t error = part(p, g, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace fastllm::cuda
