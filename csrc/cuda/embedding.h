// Embedding's CUDA kernels: no torch header, raw pointers and a stream.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

// Token ids as the user gave them, int64 or int32, unchecked: they are on the device, and asking for them would stall.
struct Tokens {
  const void* ids;
  bool narrow;  // int32
  int64_t count;
  int64_t length;  // of a sequence: position of token i = i % length
};

// output[i] = weight[token[i]] + position[offset + i % length]; NaN where the token is no row of the table.
struct EmbeddingForwardParams {
  DType dtype;
  Tokens tokens;
  int64_t vocabulary;
  int64_t channels;
  const void* weight;    // vocabulary x channels
  const void* position;  // or null; its row `offset` is that of a sequence's first token
  int64_t offset;
  void* output;  // count x channels
};
cudaError_t embedding_forward(const EmbeddingForwardParams& params, cudaStream_t stream);

// keys[i] = token[i], or `vocabulary` where no gradient goes: at the padding token and outside the table.
struct EmbeddingKeysParams {
  Tokens tokens;
  int32_t vocabulary;
  int64_t padding;  // or -1
  int32_t* keys;
};
cudaError_t embedding_keys(const EmbeddingKeysParams& params, cudaStream_t stream);

// The sorted tokens are cut into pieces of this many, whatever the device.
constexpr int64_t kEmbeddingPiece = 32;

// grad_weight[k] = sum, in an order that depends on the keys alone, of grad_output[order[j]] where keys[j] = k.
struct EmbeddingBackwardParams {
  DType dtype;
  int64_t count;
  int32_t vocabulary;
  int64_t channels;
  const int32_t* keys;   // sorted, `vocabulary` last
  const int64_t* order;  // where each of them stood; equal ones in their order
  const void* grad_output;
  float* partial;     // 2 x channels a piece: sums of runs that piece borders cut
  void* grad_weight;  // zeros
};
cudaError_t embedding_backward(const EmbeddingBackwardParams& params, cudaStream_t stream);

// grad_position[offset + t] = sum over sequences of grad_output[:, t]; the other rows are zero.
struct PositionBackwardParams {
  DType dtype;
  int64_t count;
  int64_t length;
  int64_t positions;
  int64_t channels;
  int64_t offset;
  const void* grad_output;
  void* grad_position;  // positions x channels
};
cudaError_t position_backward(const PositionBackwardParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
