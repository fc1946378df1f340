// Attention of the newest tokens over caches of keys and values (the split over keys of Dao et al., "Flash-Decoding for
// long-context inference", 2023).
//
// The result of a query is the same bit for bit for any number of threads, batch, capacity of the caches and number of
// queries that come with it: it depends on what it sees alone.
#pragma once

#include <cstdint>

#include "cpu/attention.h"

namespace fastllm {

// B batch, H heads of queries, Hkv of keys and values, Tq queries, D head_dim, Dv of values
template <typename T>
struct DecodeAttention {
  using C = Compute<T>;
  int64_t b, h, hkv, tq, d, dv;
  Heads<const T*> query, key, value;
  const int64_t* lengths;    // (B): query i stands at position lengths[b] - tq + i of the keys, and sees the keys up to
                             // there,
  int64_t left;              // and no more than this many before it
  C scale;                   // of the products of queries and keys
  C softcap;                 // scores become softcap * tanh(score / softcap); 0: they don't
  const C* alibi_slopes;     // by the strides below; null: none
  int64_t alibi_strides[2];  // of (B, H)
};

// It uses scratch slots 0 and 1 of common/parallel.h.
template <typename T>
void decode_attention(const DecodeAttention<T>& a, const Heads<T*>& output);

}  // namespace fastllm
