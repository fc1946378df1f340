// The gradient of embedding's table: rows of grad_output summed by token, without atomics.
//
// The tokens come sorted. A block takes a piece of kEmbeddingPiece of them and sums run by run. A run that lies within
// the piece is a row of the gradient; the part of one that a border cuts goes to `partial` (at most two a piece, its
// first and its last), and a second kernel adds the parts, in order, where such a run begins. So a token that is every
// second one of the batch is summed by as many blocks as it has pieces, and the order depends on the tokens alone.
//
// Bytes: grad_output once, the table's gradient twice where its row is in use (the zeros, then the sum), the zeros
// elsewhere: memory-bound; of GPT-2's table, larger than a batch's grad_output, the zeros are most. A thread owns 16
// bytes of columns and has kInFlight rows under way: 64 KB of loads a multiprocessor, where an H100 needs about 16 KB
// to keep its memory busy.
#include "cuda/dispatch.h"
#include "cuda/embedding.h"
#include "cuda/launch.h"
#include "cuda/shared.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kPiece = static_cast<int>(kEmbeddingPiece);
constexpr int kThreads = 128;
constexpr int kInFlight = 4;
constexpr int kBlocksPerProcessor = 8;  // 64 registers a thread
constexpr int32_t kNone = -1;           // a key beyond either end

struct PieceShared {
  int64_t row[kPiece];
  int32_t key[kPiece + 2];  // with a neighbour at either side
};

// Where the sum of a run that borders cut is kept: a piece's first run continues one of the piece before, its last one
// goes on in the next. One that fills the piece counts as first.
__device__ __forceinline__ float* partial_row(float* partial, int64_t piece, bool last, int64_t channels) {
  return partial + (2 * piece + (last ? 1 : 0)) * channels;
}

// Sums of as many columns as fill a 16-byte access of T start at a 16-byte border in float32 too.
template <int kCount>
__device__ __forceinline__ void store_sums(float* to, const float (&sum)[kCount]) {
  constexpr int kStored = kCount < kWidest<float> ? kCount : kWidest<float>;
#pragma unroll
  for (int i = 0; i < kCount; i += kStored) {
    Pack<float, kStored> pack;
#pragma unroll
    for (int k = 0; k < kStored; ++k) pack.value[k] = sum[i + k];
    store<float, kStored>(to + i, pack);
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    pieces_kernel(EmbeddingBackwardParams p, int64_t tiles, const T* grad_output, T* grad_weight) {
  PieceShared* shared = shared_memory<PieceShared>();
  const int64_t piece = blockIdx.x / tiles, begin = piece * kPiece;
  const int count = static_cast<int>(min(static_cast<int64_t>(kPiece), p.count - begin));
  for (int i = threadIdx.x; i < count + 2; i += kThreads) {
    const int64_t at = begin + i - 1;
    shared->key[i] = at >= 0 && at < p.count ? p.keys[at] : kNone;
    if (i < count) shared->row[i] = p.order[begin + i];
  }
  __syncthreads();
  const int32_t* key = shared->key + 1;
  const int64_t column = (blockIdx.x % tiles * kThreads + threadIdx.x) * kWidth;
  if (column >= p.channels || key[0] == p.vocabulary) return;
  float sum[kWidth] = {};
  bool begins_here = key[-1] != key[0];
  for (int start = 0; start < count; start += kInFlight) {
    Pack<T, kWidth> grad[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = start + j;
      if (i < count && key[i] < p.vocabulary) {
        grad[j] = load<T, kWidth>(grad_output + shared->row[i] * p.channels + column);
      }
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = start + j;
      if (i >= count || key[i] == p.vocabulary) continue;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += to_float(grad[j].value[k]);
      const bool ends = key[i + 1] != key[i];
      if (!ends && i + 1 < count) continue;
      if (begins_here && ends) {
        Pack<T, kWidth> row;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) row.value[k] = from_float<T>(sum[k]);
        store<T, kWidth>(grad_weight + key[i] * p.channels + column, row);
      } else {
        store_sums(partial_row(p.partial, piece, begins_here, p.channels) + column, sum);
      }
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] = 0.0f;
      begins_here = true;
    }
  }
}

// A block has kColumns columns and kRows rows of threads: row r adds the run's parts r, r + kRows, .., then the rows
// are added in order.
constexpr int kColumns = 128;
constexpr int kRows = 4;

struct PartsShared {
  float sum[kRows][kColumns];
};

template <typename T>
__global__ void __launch_bounds__(kColumns* kRows)
    parts_kernel(EmbeddingBackwardParams p, int64_t pieces, int64_t tiles, T* grad_weight) {
  const int64_t piece = blockIdx.x / tiles, begin = piece * kPiece, end = begin + kPiece;
  // The run at the piece's end must go on in the next piece and must begin in this one.
  const int32_t key = p.keys[end - 1];
  if (key == p.vocabulary || p.keys[end] != key) return;
  if (begin > 0 && p.keys[begin - 1] == key) return;
  PartsShared* shared = shared_memory<PartsShared>();
  const int lane = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  const int64_t column = blockIdx.x % tiles * kColumns + lane;
  float sum = 0.0f;
  if (column < p.channels) {
    for (int64_t i = piece + row; i < pieces && (i == piece || p.keys[i * kPiece] == key); i += kRows) {
      sum += partial_row(p.partial, i, i == piece, p.channels)[column];
    }
  }
  shared->sum[row][lane] = sum;
  __syncthreads();
  if (row != 0 || column >= p.channels) return;
#pragma unroll
  for (int r = 1; r < kRows; ++r) sum += shared->sum[r][lane];
  grad_weight[key * p.channels + column] = from_float<T>(sum);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth>
cudaError_t launch_pieces(const EmbeddingBackwardParams& p, int64_t pieces, cudaStream_t stream) {
  const int64_t tiles = (p.channels + kThreads * kWidth - 1) / (kThreads * kWidth);
  return launch<pieces_kernel<T, kWidth>>({static_cast<unsigned>(pieces * tiles), kThreads, sizeof(PieceShared)},
                                          stream, p, tiles, static_cast<const T*>(p.grad_output),
                                          static_cast<T*>(p.grad_weight));
}

template <typename T>
cudaError_t launch_parts(const EmbeddingBackwardParams& p, int64_t pieces, cudaStream_t stream) {
  const int64_t tiles = (p.channels + kColumns - 1) / kColumns;
  // The last piece has no next one for a run to go on in.
  return launch<parts_kernel<T>>({static_cast<unsigned>((pieces - 1) * tiles), kColumns * kRows, sizeof(PartsShared)},
                                 stream, p, pieces, tiles, static_cast<T*>(p.grad_weight));
}

}  // namespace

cudaError_t embedding_backward(const EmbeddingBackwardParams& p, cudaStream_t stream) {
  if (p.count == 0 || p.channels == 0) return cudaSuccess;
  const int64_t pieces = (p.count + kPiece - 1) / kPiece;
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool wide = rows_are_aligned<T>(p.grad_output, p.channels) && rows_are_aligned<T>(p.grad_weight, p.channels);
    const cudaError_t error =
        wide ? launch_pieces<T, kWidest<T>>(p, pieces, stream) : launch_pieces<T, 1>(p, pieces, stream);
    if (error != cudaSuccess || pieces == 1) return error;
    return launch_parts<T>(p, pieces, stream);
  });
}

}  // namespace fastllm::cuda
