// Scaled dot-product attention a tile at a time (Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023): an
// online softmax over tiles of keys, so that scores never exist beyond one tile; backward makes them again from the
// saved logsumexp.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "cpu/simd.h"

namespace fastllm {

// A (B, T, H, D) view of memory; D is contiguous.
template <typename P>
struct Heads {
  P data = nullptr;
  int64_t batch, token, head;  // strides

  P at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * token + h * head; }
};

// B batch, H heads of queries, Hkv of keys and values, Tq and Tk tokens, D head_dim, Dv of values
template <typename T>
struct Attention {
  using C = Compute<T>;
  int64_t b, h, hkv, tq, tk, d, dv;
  Heads<const T*> query, key, value;
  C scale;
  bool causal;
  int64_t causal_shift;        // query i sees keys j <= i + causal_shift
  const int64_t* key_lengths;  // (B) keys that count, or null
  const C* mask;               // added to the scores, by the strides below (0: broadcast); null: none
  int64_t mask_strides[4];     // of (B, H, Tq, Tk)
  const DropoutParams* dropout;
};

template <typename T>
void attention_forward(const Attention<T>& a, const Heads<T*>& output, Compute<T>* logsumexp);

// mask_heads, mask_batches: whether the mask's gradient is of a mask with its own head and batch dimension. Its
// gradient has the mask's own strides and must be zeroed by the caller; null: not wanted.
template <typename T>
struct AttentionGradients {
  Heads<const T*> grad_output, output;
  const Compute<T>* logsumexp;  // (B, H, Tq)
  Heads<T*> grad_query, grad_key, grad_value;
  Compute<T>* grad_mask;
  bool mask_batches, mask_heads;
};

template <typename T>
void attention_backward(const Attention<T>& a, const AttentionGradients<T>& g);

}  // namespace fastllm
