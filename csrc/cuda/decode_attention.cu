// decode_attention: keys are cut into splits, a block takes one split of one head of keys and values through up to 4 of
// the queries that read it, and each query's splits are added in order (Dao et al., "Flash-Decoding for long-context
// inference", 2023).
//
// It moves (D + Dv) elements a key and head of keys and values, read once from memory: 76 us per million keys of a head
// with D = 64 in bf16 at 3.35 TB/s. Partial sums are 1/64 of that for each query, there and back. A warp has about 130
// instructions for 1 KiB of 16-bit keys and values with one query and 65 more for each further one, half as many in
// float32, and an H100's multiprocessor time for 280: memory bounds up to 3 queries in 16 bits, and 4 take a sixth
// longer. More than 4 queries of a head (its group times Tq) are several blocks that follow each other, so that all but
// the first read from L2.
//
// A row of D is shared by as many lanes as hold it at 8 values each, so a warp reads whole lines of neighbouring keys;
// a group of lanes keeps a softmax of its own and waits for nobody before the end of a split. A thread has 128 bytes
// under way, of 4 keys and their values, in float32 of 2; 4 blocks of 128 threads have 64 KiB in a multiprocessor, of
// the 18 that an H100 needs. A split of 128 keys makes 96 blocks of 12 heads with 1024 keys.
//
// A query's sums depend on where keys stand, on D and on the dtype alone: not on the batch, the capacity, the queries
// beside it, alignment, nor on the device.
#include "cuda/decode_attention.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "cuda/decode_sums.h"
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/row_group.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

using Params = DecodeAttentionParams;

constexpr int kSplit = static_cast<int>(kDecodeSplit);
constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kMergeThreads = 256, kMergeWarps = kMergeThreads / kWarp;
constexpr int kRows = 4;  // queries of a block: one for each warp to write
static_assert(kRows <= kWarps);

// More blocks would mostly find that there is nothing to do, where sequences are shorter than the capacity: that takes
// a microsecond for every 500. Blocks take several splits each instead.
constexpr int64_t kMostBlocks = 4096;

// Keys of a group of lanes whose loads are in flight at once.
template <typename T>
constexpr int kKeys = 2 * sizeof(float) / sizeof(T);

// In place of a weight, which is never negative: the query does not see this key, whose value may be anything.
constexpr float kUnseen = -1.0f;

// ---------------------------------------------------------------------------------------------------------------------
// Who does what
// ---------------------------------------------------------------------------------------------------------------------

// Of a block: some of the queries that read one head of keys and values, and every step-th split from the first on.
struct Task {
  int64_t b, kv_head;
  int first_row, rows;  // of the head's H / Hkv * Tq
  int first_split, step;
};

// Blocks with queries of one split are neighbours in time: one reads it from memory, the others from L2.
struct Grid {
  unsigned chunks, steps;

  static Grid of(const Params& p) {
    const int64_t rows = p.heads / p.kv_heads * p.queries, chunks = (rows + kRows - 1) / kRows;
    const int64_t most = std::max<int64_t>(1, kMostBlocks / (p.batch * p.kv_heads * chunks));
    return {static_cast<unsigned>(chunks), static_cast<unsigned>(std::min(most, p.partials.splits))};
  }
  unsigned blocks(const Params& p) const { return static_cast<unsigned>(p.batch * p.kv_heads) * chunks * steps; }

  __device__ __forceinline__ Task task(const Params& p) const {
    const auto kv_heads = static_cast<unsigned>(p.kv_heads);
    const unsigned chunk = blockIdx.x % chunks, rest = blockIdx.x / chunks, split = rest % steps, head = rest / steps;
    const int rows = static_cast<int>(p.heads / p.kv_heads * p.queries), first = static_cast<int>(chunk) * kRows;
    return {head / kv_heads,         head % kv_heads,        first, rows - first < kRows ? rows - first : kRows,
            static_cast<int>(split), static_cast<int>(steps)};
  }
};

// Keys [begin, end).
struct Keys {
  int begin, end;
};

// A query that stands at a position sees itself and `left` keys before.
__device__ __forceinline__ Keys seen_from(int position, int64_t left) {
  return {position > left ? static_cast<int>(position - left) : 0, position + 1 > 0 ? position + 1 : 0};
}

__device__ __forceinline__ int length_of(const Params& p, int64_t b) {
  return static_cast<int>(max(int64_t{0}, min(p.capacity, p.lengths[b])));
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

struct Shared {
  alignas(16) float query[kRows][kDecodeMostColumns];  // scaled, zeros behind
  int position[kRows];
  float slope[kRows];
  WarpSums<kWarps> sums[kRows];
};

template <typename T>
__device__ __forceinline__ void load_queries(const Params& p, const Task& task, int length, int columns,
                                             Shared* shared) {
  const int queries = static_cast<int>(p.queries), group = static_cast<int>(p.heads) / static_cast<int>(p.kv_heads);
  const auto head_of = [&](int r) { return task.kv_head * group + (task.first_row + r) / queries; };
  const auto token_of = [&](int r) { return (task.first_row + r) % queries; };
  for (int i = threadIdx.x; i < task.rows * columns; i += kThreads) {
    const int r = i / columns, column = i % columns;
    const T* from = static_cast<const T*>(p.query.data) + task.b * p.query.batch + head_of(r) * p.query.head +
                    token_of(r) * p.query.token;
    shared->query[r][column] = column < p.head_dim ? to_float(from[column]) * p.scale : 0.0f;
  }
  const int r = threadIdx.x;
  if (r >= task.rows) return;
  shared->position[r] = length - queries + token_of(r);
  shared->slope[r] = p.alibi_slopes ? p.alibi_slopes[task.b * p.alibi_stride + head_of(r)] : 0.0f;
}

// One head's keys and values, and what a lane takes of them.
template <typename T>
struct Cache {
  const T *keys, *values;
  int64_t next_key, next_value;
  Columns<T> key_columns, value_columns;

  __device__ __forceinline__ Cache(const Params& p, const Task& task, const RowGroup& group)
      : keys(static_cast<const T*>(p.key.data) + task.b * p.key.batch + task.kv_head * p.key.head),
        values(static_cast<const T*>(p.value.data) + task.b * p.value.batch + task.kv_head * p.value.head),
        next_key(p.key.token),
        next_value(p.value.token),
        key_columns{group.lanes, group.lane(), static_cast<int>(p.head_dim)},
        value_columns{group.lanes, group.lane(), static_cast<int>(p.value_dim)} {}
};

// Scores of kCount keys, from `key` on and `next` from one to the next, become their weights for a query. They end with
// the split, though a group's keys may not. All lanes of a group have them all.
template <int kCount>
__device__ __forceinline__ void softmax(const Params& p, int position, float slope, int key, int next, int end,
                                        float (&weights)[kCount], Sums& sums) {
  const Keys seen = seen_from(position, p.left);
  bool is_seen[kCount];
  float upper = -INFINITY;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const int at = key + k * next;
    is_seen[k] = at >= seen.begin && at < min(seen.end, end);
    if (p.softcap != 0.0f) weights[k] = p.softcap * tanhf(weights[k] / p.softcap);
    if (p.alibi_slopes) weights[k] = fmaf(-slope, static_cast<float>(position - at), weights[k]);
    if (is_seen[k]) upper = Max::of(upper, weights[k]);
  }
  sums.raise(upper);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    weights[k] = !is_seen[k] ? kUnseen : weights[k] == -INFINITY ? 0.0f : expf(weights[k] - sums.maximum);
    if (is_seen[k]) sums.sum += weights[k];
  }
}

// All queries of the block over a key of each group of lanes, kKeys times.
template <typename T, bool kWide>
__device__ __forceinline__ void attend(const Params& p, const Cache<T>& cache, const RowGroup& group, const Keys& keys,
                                       int first, int rows, const Shared* shared, Sums (&sums)[kRows]) {
  constexpr int kCount = kKeys<T>;
  const int key = first + group.index(), next = group.count();
  const T *keys_at = cache.keys + key * cache.next_key, *values_at = cache.values + key * cache.next_value;
  Part<T, kWide> key_parts[kCount], value_parts[kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k, keys_at += next * cache.next_key, values_at += next * cache.next_value) {
    const int at = key + k * next;
    if (at < keys.begin || at >= keys.end) continue;
    key_parts[k] = Part<T, kWide>::load(keys_at, cache.key_columns);
    value_parts[k] = Part<T, kWide>::load(values_at, cache.value_columns);
  }
  float weights[kRows][kCount];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    float query[kValues];
    load_columns(shared->query[r], cache.key_columns, query);
#pragma unroll
    for (int k = 0; k < kCount; ++k) weights[r][k] = key_parts[k].dot(query);
    for (int distance = group.lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) weights[r][k] += __shfl_xor_sync(kAllLanes, weights[r][k], distance);
    }
    softmax(p, shared->position[r], shared->slope[r], key, next, keys.end, weights[r], sums[r]);
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    float value[kValues];
    value_parts[k].unpack(value);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows || weights[r][k] < 0.0f) continue;
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[r].value[i] = fmaf(weights[r][k], value[i], sums[r].value[i]);
    }
  }
}

template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads, 4) split_kernel(Params p, Grid grid, RowGroup group) {
  Shared* shared = shared_memory<Shared>();
  const Task task = grid.task(p);
  const int length = length_of(p, task.b), queries = static_cast<int>(p.queries);
  Keys any{INT_MAX, 0};  // keys that one of the queries sees
  for (int r = 0; r < task.rows; ++r) {
    const Keys seen = seen_from(length - queries + (task.first_row + r) % queries, p.left);
    any = {min(any.begin, seen.begin), max(any.end, seen.end)};
  }
  if (task.first_split * kSplit >= any.end) return;
  load_queries<T>(p, task, length, group.lanes * kValues, shared);
  __syncthreads();

  const Cache<T> cache(p, task, group);
  const int step = kKeys<T> * group.count(), warp = threadIdx.x / kWarp;
  const int64_t row = (task.b * p.heads + task.kv_head * (p.heads / p.kv_heads)) * p.queries + task.first_row + warp;
  for (int split = task.first_split; split * kSplit < any.end; split += task.step) {
    const Keys keys{max(any.begin, split * kSplit), min(any.end, (split + 1) * kSplit)};
    if (keys.begin >= keys.end) continue;
    Sums sums[kRows];
    for (int first = split * kSplit; first < keys.end; first += step) {
      if (first + step > keys.begin) attend<T, kWide>(p, cache, group, keys, first, task.rows, shared, sums);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= task.rows) break;
      sums[r].add_groups_of_warp(group.lanes);
      shared->sums[r].put(sums[r], cache.value_columns);
    }
    __syncthreads();
    if (warp < task.rows && static_cast<int>(threadIdx.x % kWarp) < group.lanes) {
      const int64_t at = row * p.partials.splits + split;
      const Sums total = shared->sums[warp].total(cache.value_columns);
      total.store<T, true>(p.partials.statistics + 2 * at, p.partials.values + at * p.partials.row,
                           cache.value_columns);
    }
    __syncthreads();  // before the next split's sums come
  }
}

// A query's splits. Groups of lanes take them in turns.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(Params p, RowGroup group) {
  using Shared = WarpSums<kMergeWarps>;
  Shared* shared = shared_memory<Shared>();
  const unsigned row = blockIdx.x, queries = static_cast<unsigned>(p.queries), heads = static_cast<unsigned>(p.heads);
  const unsigned i = row % queries, h = row / queries % heads, b = row / queries / heads;
  const int length = length_of(p, b);
  const Keys seen = seen_from(length - static_cast<int>(queries - i), p.left);
  const Columns<T> columns{group.lanes, group.lane(), static_cast<int>(p.value_dim)};
  Sums sums;
#pragma unroll 2
  for (int split = seen.begin / kSplit + group.index(); split * kSplit < seen.end; split += group.count()) {
    const int64_t at = static_cast<int64_t>(row) * p.partials.splits + split;
    sums.add(Sums::load(p.partials.statistics + 2 * at, p.partials.values + at * p.partials.row, columns));
  }
  sums.add_groups_of_warp(group.lanes);
  shared->put(sums, columns);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < group.lanes) {
    Sums total = shared->total(columns);
#pragma unroll
    for (int j = 0; j < kValues; ++j) total.value[j] /= total.sum;
    store_columns<false>(shared->values[0], columns, total.value);
  }
  __syncthreads();  // then neighbours write neighbouring columns, of any number
  T* output = static_cast<T*>(p.output) + ((static_cast<int64_t>(b) * queries + i) * heads + h) * p.value_dim;
  for (int column = threadIdx.x; column < columns.count; column += kMergeThreads) {
    output[column] = from_float<T>(seen.begin < seen.end ? shared->values[0][column] : 0.0f);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
bool is_wide(const Params& p, const Params::View& view, int64_t columns) {
  const bool outer = p.batch == 1 || view.batch % kWidest<T> == 0,
             inner = p.kv_heads == 1 || view.head % kWidest<T> == 0;
  return outer && inner && rows_are_aligned<T>(view.data, view.token) && columns % kWidest<T> == 0;
}

template <typename T, bool kWide>
cudaError_t launch_kernels(const Params& p, cudaStream_t stream) {
  const int64_t columns = std::max(p.head_dim, p.value_dim);
  const RowGroup group = RowGroup::of((columns + kValues - 1) / kValues, kValues * sizeof(T), 1, kWarp);
  const auto rows = static_cast<unsigned>(p.batch * p.heads * p.queries);
  if (p.partials.splits > 0) {
    const Grid grid = Grid::of(p);
    const cudaError_t error =
        launch<split_kernel<T, kWide>>({grid.blocks(p), kThreads, sizeof(Shared)}, stream, p, grid, group);
    if (error != cudaSuccess) return error;
  }
  return launch<merge_kernel<T>>({rows, kMergeThreads, sizeof(WarpSums<kMergeWarps>)}, stream, p, group);
}

}  // namespace

cudaError_t decode_attention(const DecodeAttentionParams& params, cudaStream_t stream) {
  if (params.batch * params.heads * params.queries * params.value_dim == 0) return cudaSuccess;
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return is_wide<T>(params, params.key, params.head_dim) && is_wide<T>(params, params.value, params.value_dim)
               ? launch_kernels<T, true>(params, stream)
               : launch_kernels<T, false>(params, stream);
  });
}

}  // namespace fastllm::cuda
