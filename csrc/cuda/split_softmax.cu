// Softmax forward over few long rows, as of a vocabulary while a model generates: several blocks a row.
//
// Bound by memory: 3 sizeof(T) bytes an element, of which the second reading comes from L2 (a row of 256k float32 is 1
// MiB of its 50). With a block a row, as in softmax.cu, a row would go no faster than a multiprocessor reads, some 60
// bytes a ns; so 8 rows of 128k float32 take 5 us here, two launches included, where they would take 20.
// A block of 256 threads takes a piece of a row, 16 elements a thread (8 where accesses are single elements): 32 bytes
// in flight or more, 32 KiB a multiprocessor. The first kernel leaves each piece's maximum and sum of exponentials
// against it; the second adds these up for its row and writes its piece.
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/online_softmax.h"
#include "cuda/packed.h"
#include "cuda/shared.h"
#include "cuda/softmax.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
template <int kWidth>
constexpr int kVectors = kWidth == 1 ? 8 : 16 / kWidth;
template <int kWidth>
constexpr int kPiece = kThreads * kVectors<kWidth> * kWidth;

struct Shared {
  float partial[kThreads / kWarp];
};

// A piece of a row.
template <typename T, int kWidth>
struct Piece {
  int64_t row, index, start;  // of its first element
  int count;
  float x[kVectors<kWidth>][kWidth];

  __device__ __forceinline__ Piece(const SoftmaxParams& p, int64_t pieces)
      : row(blockIdx.x / pieces), index(blockIdx.x % pieces), start(row * p.size + index * kPiece<kWidth>) {
    const int64_t left = p.size - index * kPiece<kWidth>;
    count = static_cast<int>(left < kPiece<kWidth> ? left : kPiece<kWidth>);
    Packed<T, kWidth> packed[kVectors<kWidth>];
    for_each([&](int i, int at) { packed[i] = Packed<T, kWidth>::load(static_cast<const T*>(p.input) + start + at); });
    for_each([&](int i, int) { packed[i].unpack(x[i]); });
  }

  // body(i, at) for each vector of this thread's, `at` elements into the piece.
  template <typename Body>
  __device__ __forceinline__ void for_each(Body&& body) const {
#pragma unroll
    for (int i = 0; i < kVectors<kWidth>; ++i) {
      const int at = (i * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (at < count) body(i, at);
    }
  }
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 4) pieces_kernel(SoftmaxParams p, int64_t pieces) {
  float* shared = shared_memory<Shared>()->partial;
  Piece<T, kWidth> piece(p, pieces);
  float upper = -INFINITY;
  piece.for_each([&](int i, int) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) upper = Max::of(upper, piece.x[i][j]);
  });
  OnlineSoftmax own;
  own.raise(block_reduce<Max, kThreads>(upper, shared));
  piece.for_each([&](int i, int) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) own.add(piece.x[i][j]);
  });
  const float sum = block_reduce<Sum, kThreads>(own.sum(), shared);
  if (threadIdx.x == 0) p.pieces[blockIdx.x] = {own.maximum, sum};
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 4) rows_kernel(SoftmaxParams p, int64_t pieces) {
  float* shared = shared_memory<Shared>()->partial;
  Piece<T, kWidth> piece(p, pieces);
  const SoftmaxPiece* of_row = p.pieces + piece.row * pieces;
  float maximum = -INFINITY, sum = 0.0f;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) maximum = Max::of(maximum, of_row[i].maximum);
  maximum = block_reduce<Max, kThreads>(maximum, shared);
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) sum += of_row[i].sum * expf(of_row[i].maximum - maximum);
  const float factor = 1.0f / block_reduce<Sum, kThreads>(sum, shared);
  piece.for_each([&](int i, int at) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) piece.x[i][j] = expf(piece.x[i][j] - maximum) * factor;
    Packed<T, kWidth>::pack(piece.x[i]).store(static_cast<T*>(p.output) + piece.start + at);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth>
cudaError_t launch_width(const SoftmaxParams& p, cudaStream_t stream) {
  const int64_t pieces = (p.size + kPiece<kWidth> - 1) / kPiece<kWidth>;
  const Launch how{dim3(static_cast<unsigned>(p.outer * pieces)), dim3(kThreads), sizeof(Shared)};
  const cudaError_t error = launch<pieces_kernel<T, kWidth>>(how, stream, p, pieces);
  return error != cudaSuccess ? error : launch<rows_kernel<T, kWidth>>(how, stream, p, pieces);
}

}  // namespace

// With more rows than half of an H100's 132 multiprocessors, or rows that a block holds in registers twice over, two
// launches cost more than they gain. The limits are constants: sums must not depend on the device.
int64_t softmax_pieces(const SoftmaxParams& p) {
  constexpr int64_t kFewRows = 66, kLongRow = 32 * 1024;
  if (p.inner != 1 || p.outer > kFewRows || p.size <= kLongRow) return 0;
  return p.outer * ((p.size + kPiece<1> - 1) / kPiece<1>);
}

cudaError_t split_softmax_forward(const SoftmaxParams& params, cudaStream_t stream) {
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool wide = rows_are_aligned<T>(params.input, params.size) && is_aligned(params.output);
    return wide ? launch_width<T, kWidest<T>>(params, stream) : launch_width<T, 1>(params, stream);
  });
}

}  // namespace fastllm::cuda
