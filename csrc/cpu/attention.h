// Scaled dot-product attention a tile at a time (Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023): an
// online softmax over tiles of keys, so that scores never exist beyond one tile; backward makes them again, and their
// weights from the saved statistics.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "common/softmax_statistics.h"
#include "cpu/simd.h"

namespace fastllm {

// A (B, T, H, D) view of memory; D is contiguous.
template <typename P>
struct Heads {
  P data = nullptr;
  int64_t batch, token, head;  // strides

  P at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * token + h * head; }
};

// Neighbours of one segment, [begin, end). Runs of one sequence follow each other, so both bounds only rise.
struct Run {
  int64_t begin, end;
};

// B batch, H heads of queries, Hkv of keys and values, Tq and Tk tokens, D head_dim, Dv of values
//
// A score is softcap(query . key * scale) - slope * distance + mask, with the terms that are not null.
template <typename T>
struct Attention {
  using C = Compute<T>;
  int64_t b, h, hkv, tq, tk, d, dv;
  Heads<const T*> query, key, value;
  C scale;
  int64_t shift;               // query i stands at position i + shift of the keys,
  const int64_t* ends;         // (B), added to shift; null: nothing is
  int64_t left, right;         // and sees the keys from there - left to there + right
  const int64_t* key_lengths;  // (B) keys that count, in [0, tk]; or null
  const Run* runs;             // (B, Tq): token i sees no keys outside its run; Tq = Tk, shift = 0; null: no bound
  const C* mask;               // added to the scores, by the strides below (0: broadcast); null: none
  int64_t mask_strides[4];     // of (B, H, Tq, Tk)
  const C* alibi_slopes;       // by the strides below; null: none
  int64_t alibi_strides[2];    // of (B, H)
  C softcap;                   // scores become softcap * tanh(score / softcap); 0: they don't
  const DropoutParams* dropout;
  Heads<const T*> minus;  // (B, Tq, H, Dv) that forward subtracts from its output before it is rounded; or null
};

// statistics: (B, H, Tq); of a row that sees nothing, both are 0.
template <typename T>
void attention_forward(const Attention<T>& a, const Heads<T*>& output, SoftmaxStatistics<Compute<T>>* statistics);

template <typename T>
struct AttentionGradients {
  Heads<const T*> grad_output, output;
  Heads<const T*> residual;                         // of the output, or null
  const SoftmaxStatistics<Compute<T>>* statistics;  // (B, H, Tq)
  Heads<T*> grad_query, grad_key, grad_value;
  Compute<T>* grad_mask;  // by the mask's own strides, zeroed by the caller; null: not wanted
};

template <typename T>
void attention_backward(const Attention<T>& a, const AttentionGradients<T>& g);

}  // namespace fastllm
