// decode_attention's CUDA kernels: no torch header, raw pointers and a stream.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

// Keys are cut at multiples of this many positions, whatever the shapes.
constexpr int64_t kDecodeSplit = 128;
// Of queries, keys and values: what a warp holds.
constexpr int64_t kDecodeMostColumns = 256;
// Positions are 32 bits wide, with room for a step of splits.
constexpr int64_t kDecodeMostCapacity = int64_t{1} << 30;

// What the splits give for each query: the largest score, the sum of the weights relative to it, and the values' sum.
struct DecodePartials {
  int64_t splits;               // of the capacity
  int64_t row;                  // floats of a values' sum, whole vectors
  float* statistics = nullptr;  // (B, H, Tq, splits, 2)
  float* values = nullptr;      // (B, H, Tq, splits, row)

  static DecodePartials of(int64_t capacity, int64_t value_dim) {
    return {(capacity + kDecodeSplit - 1) / kDecodeSplit, (value_dim + 7) / 8 * 8};
  }
};

// B batch, H heads of queries, Hkv of keys and values, Tq queries, S capacity, D head_dim, Dv of values
struct DecodeAttentionParams {
  // A (B, H, T, D) view of memory; D is contiguous.
  struct View {
    const void* data;
    int64_t batch, head, token;  // strides
  };
  DType dtype;
  int64_t batch, heads, kv_heads, queries, capacity, head_dim, value_dim;
  View query, key, value;
  const int64_t* lengths;     // (B); one outside of [0, S] counts as the nearest end
  int64_t left;               // keys that a query sees before itself
  float scale;                // of the products of queries and keys
  float softcap;              // scores become softcap * tanh(score / softcap); 0: they don't
  const float* alibi_slopes;  // (H), or (B, H) by the stride; null: none
  int64_t alibi_stride;       // of B
  DecodePartials partials;
  void* output;  // (B, Tq, H, Dv), contiguous
};

cudaError_t decode_attention(const DecodeAttentionParams& params, cudaStream_t stream);

}  // namespace fastllm::cuda
