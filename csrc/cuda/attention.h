// Scaled dot-product attention and its backward on CUDA: what the launchers take. The same terms as cpu/attention.h.
#pragma once

#include <cstdint>

#include "common/softmax_statistics.h"
#include "cuda/dropout.h"
#include "cuda/dtype.h"

namespace fastllm::cuda {

// A (B, T, H, D) view of memory; D is contiguous.
template <typename Pointer>
struct HeadsOf {
  Pointer data = nullptr;
  int64_t batch = 0, token = 0, head = 0;  // strides in elements
  bool wide = false;                       // every row is aligned to 16 bytes, and D is whole chunks of 16 bytes
};
using Heads = HeadsOf<const void*>;
using MutableHeads = HeadsOf<void*>;

// Added to the scores, or which of them count: in query's dtype, float32 or bool.
struct AttentionMask {
  enum class Kind { kNone, kBool, kFloat32, kNarrow };
  Kind kind = Kind::kNone;
  const void* data = nullptr;
  int64_t strides[4] = {};  // of (B, H, Tq, Tk); 0: broadcast
};

// B batch, H heads of queries, Hkv of keys and values, Tq and Tk tokens, D head_dim, Dv of values; D and Dv are at most
// kMostChannels, Tq and Tk at most kMostTokens.
//
// A score is softcap(query . key * scale) - slope * distance + mask, with the terms that are there.
struct AttentionParams {
  static constexpr int64_t kMostChannels = 256, kMostTokens = int64_t{1} << 28;

  DType dtype;
  int batch, heads, kv_heads, queries, keys, channels, value_channels;
  Heads query, key, value;
  float scale;
  int shift;                             // query i stands at position i + shift of the keys,
  bool after_lengths = false;            // or at i + shift + its batch element's of key_lengths,
  int left, right;                       // and sees the keys from there - left to there + right
  const int64_t* key_lengths = nullptr;  // (B) keys that count
  const int64_t* run_begins = nullptr;   // (B, T): token i sees no keys outside [begin, end): Tq = Tk, shift = 0
  const int64_t* run_ends = nullptr;     // (B, T)
  AttentionMask mask;
  const float* alibi_slopes = nullptr;
  int64_t alibi_strides[2] = {};  // of (B, H)
  float softcap = 0.0f;           // 0: none
  Dropout dropout;
  bool residual = false;  // forward's output is what its rounding to dtype takes away
};

// statistics: (B, H, Tq), zeros where a query sees nothing; their maximum is Scores::exponent's shift.
cudaError_t attention_forward(const AttentionParams& p, const MutableHeads& output,
                              SoftmaxStatistics<float>* statistics, cudaStream_t stream);

// What backward's kernels need of a query: weights are exponentials times inverse_sum, and so is delta already.
struct alignas(16) QueryRow {
  float maximum, inverse_sum, delta, unused;
};

struct AttentionGradients {
  Heads grad_output, output;
  const SoftmaxStatistics<float>* statistics;  // (B, H, Tq)
  QueryRow* rows;                              // (B, H, Tq): room; delta is the sum of output * grad_output
  const float* residual_delta = nullptr;       // (B, H, Tq): added to these sums; or null
  MutableHeads grad_query, grad_key, grad_value;
  float* grad_mask = nullptr;         // contiguous in the mask's own shape; null: not wanted
  int64_t grad_mask_strides[4] = {};  // of (B, H, Tq, Tk); 0: broadcast
};

cudaError_t attention_backward(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream);

// Its parts, in this order.
cudaError_t attention_backward_queries(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream);
cudaError_t attention_backward_keys(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream);
cudaError_t attention_backward_mask(const AttentionParams& p, const AttentionGradients& g, cudaStream_t stream);

}  // namespace fastllm::cuda
