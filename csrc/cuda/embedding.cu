// The gather of embedding, with positions added on the way, and the sort keys that its backward starts from.
//
// Bytes: a row of weight in, one of position (which stays in L2) and one of output, so 8 a float32 element that is not
// in a cache: memory-bound, for an H100 at the copy limit; frequent tokens' rows come from L2 and make it faster.
// A block takes whole rows that together have about kThreads * kInFlight vectors, so that short rows share a block and
// every thread has kInFlight loads under way.
#include "cuda/embedding.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kInFlight = 2;

__device__ __forceinline__ int64_t token_at(const Tokens& tokens, int64_t i) {
  return tokens.narrow ? static_cast<const int32_t*>(tokens.ids)[i] : static_cast<const int64_t*>(tokens.ids)[i];
}

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> sum_of(Pack<T, kWidth> a, const Pack<T, kWidth>& b) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) a.value[i] = from_float<T>(to_float(a.value[i]) + to_float(b.value[i]));
  return a;
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Tokens tokens, int64_t vocabulary, int64_t channels, int64_t rows_a_block, const T* weight,
                  const T* position, int64_t offset, T* output) {
  const int64_t first = blockIdx.x * rows_a_block;
  // Inside a block 32 bits do: it has few rows, or one.
  const unsigned rows = static_cast<unsigned>(min(rows_a_block, tokens.count - first));
  const unsigned vectors = static_cast<unsigned>(channels / kWidth), total = rows * vectors;
  const unsigned length = static_cast<unsigned>(tokens.length), t = static_cast<unsigned>(first % tokens.length);
  for (unsigned start = threadIdx.x; start < total; start += kThreads * kInFlight) {
    Pack<T, kWidth> value[kInFlight], where[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const unsigned at = start + j * kThreads;
      if (at >= total) continue;
      const unsigned row = at / vectors, column = (at - row * vectors) * kWidth;
      const int64_t token = token_at(tokens, first + row);
      if (token >= 0 && token < vocabulary) {
        value[j] = load<T, kWidth>(weight + token * channels + column);
      } else {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) value[j].value[k] = from_float<T>(NAN);
      }
      if (position) where[j] = load<T, kWidth>(position + (offset + (t + row) % length) * channels + column);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const unsigned at = start + j * kThreads;
      if (at >= total) continue;
      const int64_t to = first * channels + static_cast<int64_t>(at) * kWidth;
      store<T, kWidth>(output + to, position ? sum_of(value[j], where[j]) : value[j]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) keys_kernel(EmbeddingKeysParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.tokens.count) return;
  const int64_t token = token_at(p.tokens, i);
  const bool counts = token >= 0 && token < p.vocabulary && token != p.padding;
  p.keys[i] = counts ? static_cast<int32_t>(token) : p.vocabulary;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth>
cudaError_t launch_gather(const EmbeddingForwardParams& p, cudaStream_t stream) {
  const int64_t rows = std::max<int64_t>(1, kThreads * kInFlight * kWidth / p.channels);
  const dim3 grid(static_cast<unsigned>((p.tokens.count + rows - 1) / rows));
  return launch<gather_kernel<T, kWidth>>({grid, kThreads}, stream, p.tokens, p.vocabulary, p.channels, rows,
                                          static_cast<const T*>(p.weight), static_cast<const T*>(p.position), p.offset,
                                          static_cast<T*>(p.output));
}

}  // namespace

cudaError_t embedding_forward(const EmbeddingForwardParams& p, cudaStream_t stream) {
  if (p.tokens.count == 0 || p.channels == 0) return cudaSuccess;
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool wide = rows_are_aligned<T>(p.weight, p.channels) && rows_are_aligned<T>(p.position, p.channels) &&
                      rows_are_aligned<T>(p.output, p.channels);
    return wide ? launch_gather<T, kWidest<T>>(p, stream) : launch_gather<T, 1>(p, stream);
  });
}

cudaError_t embedding_keys(const EmbeddingKeysParams& p, cudaStream_t stream) {
  if (p.tokens.count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((p.tokens.count + kThreads - 1) / kThreads));
  return launch<keys_kernel>({grid, kThreads}, stream, p);
}

}  // namespace fastllm::cuda
