// Attention backward: a block keeps a tile of queries, or of keys, and those of the other side pass by; the scores are
// made again from the statistics. What shares scores is here; attention_backward_{queries,keys,mask}.cu hold the
// kernels.
//
// With weights P, dropout's factors F and scores' gradients dS:
//   dV = (P F)^T dO,   dP = (dO V^T) F,   dS = P (dP - delta),   delta = rowsum(dO O),   dQ = dS K,   dK = dS^T Q
// P is E / sum, with exponentials E. So that no more is computed a score than exponents relative to a logsumexp would
// want, dS is E (dP / sum - delta / sum), and what is kept of delta has been divided already.
// Gradients of queries and of keys come from kernels of their own, each of which makes S and dP: 7 products where one
// kernel would do with 5, but nothing is added up in memory. So there are no partial sums to hold and add, no atomics,
// every block is alone, and the order of sums is fixed by the shapes. Where keys are rows, scores come out transposed,
// which makes them the left operand of both products at once, without a way through shared memory.
#pragma once

#include "cuda/attention_scores.h"
#include "cuda/attention_tile.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace fastllm::cuda {

// Of a kernel's block: its rows stay, columns pass in kStages buffers. kSplit warps share 16 rows, each with a part of
// the result's channels.
template <int rows, int columns, int split, int stages, int blocks>
struct BackwardShape {
  static constexpr int kRows = rows, kColumns = columns, kSplit = split, kStages = stages, kBlocks = blocks;
  static constexpr int kThreads = rows / 16 * split * kWarp;
};

// `left` and `right`: queries and their outputs' gradients, or keys and values; scores are products of the lefts, dP
// those of the rights.
template <typename T, int kD, typename S>
struct BackwardShared {
  alignas(16) T row_left[S::kRows * kD];
  alignas(16) T row_right[S::kRows * kD];
  alignas(16) T left[S::kStages][S::kColumns * kD];
  alignas(16) T right[S::kStages][S::kColumns * kD];
  // Of the queries, which are rows, or columns in stages; there they take no registers from one tile to the next.
  union {
    QueryRow queries[S::kRows];
    QueryRow staged_queries[S::kStages][S::kColumns];
  };
};

// Of the fragment's element i of a tile: 0 or 1 by its row, or by its column.
template <bool kOfKeys>
__device__ __forceinline__ int query_of(int i) {
  return kOfKeys ? i % 2 : i / 2;
}

// Multiplies with dropout's factors.
template <typename T, bool kOfKeys, int kTiles>
__device__ __forceinline__ void scale_by_factors(const Scores<T, kOfKeys>& rules, const uint32_t (&draw)[kTiles][2],
                                                 Fragments<kTiles>& values) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[j][i] *= rules.factor(draw[j], i);
  }
}

// From products to gradients, for 16 rows from `row` and kTiles of columns from `column`. `scores` holds products of
// queries and keys and becomes P F; `grads` holds dO V^T and becomes dS, of the scores as they were with the mask
// added (kOfMask) or of the scaled products. queries gives a QueryRow& of (tile, 0 or 1) of a lane's queries.
template <bool kOfMask, typename T, bool kOfKeys, int kTiles, typename Queries>
__device__ __forceinline__ void gradients_of_scores(const Scores<T, kOfKeys>& rules, int row, int column,
                                                    Fragments<kTiles>& scores, Fragments<kTiles>& grads,
                                                    const Queries& queries) {
  const int lane = here(threadIdx.x % kWarp), g = lane / 4, t = lane % 4;
  const bool whole = rules.is_whole(row, 16, column, kTiles * kOctet), plain = rules.are_products();
  Span spans[2] = {};
  if (!whole) spans[0] = rules.seen_by(row + g), spans[1] = rules.seen_by(row + g + 8);
  uint32_t draw[kTiles][2];
  const bool drops = rules.drops();
  if (drops) rules.draw(row, column, draw);
  if (plain) {
    // Whatever is asked is asked once for the tile: a branch at each element would leave every exponential to wait for
    // the one before.
    if (drops) scale_by_factors(rules, draw, grads);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = query_of<kOfKeys>(i);
        const QueryRow& of = queries(j, query);
        const float exponential = exp2_fast(rules.template exponent<true>(scores[j][i], of.maximum));
        grads[j][i] = exponential * fmaf(grads[j][i], of.inverse_sum, -of.delta);
        scores[j][i] = exponential * of.inverse_sum;
      }
    }
    if (drops) scale_by_factors(rules, draw, scores);
    if (whole) return;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool seen = spans[i / 2].has(column + kOctet * j + 2 * t + i % 2);
        scores[j][i] = seen ? scores[j][i] : 0.0f;
        grads[j][i] = seen ? grads[j][i] : 0.0f;
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    float masked[4];
    rules.load_mask(row + g, column + kOctet * j + 2 * t, masked);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at_row = row + g + 8 * (i / 2), at_column = column + kOctet * j + 2 * t + i % 2;
      const int query = query_of<kOfKeys>(i);
      float weight = 0.0f, grad = 0.0f;
      if (whole || spans[i / 2].has(at_column)) {
        float slope;
        const float score = rules.score(scores[j][i], at_row, at_column, masked[i], slope);
        const QueryRow& of = queries(j, query);
        const float exponential = exp2_fast(rules.template exponent<false>(score, of.maximum));
        const float factor = of.inverse_sum * (drops ? rules.factor(draw[j], i) : 1.0f);
        grad = exponential * fmaf(grads[j][i], factor, -of.delta);
        if (!kOfMask) grad *= slope;
        weight = exponential * factor;
      }
      scores[j][i] = weight;
      grads[j][i] = grad;
    }
  }
}

// A (T, width) slice of one head.
template <typename T>
__device__ __forceinline__ Slice slice_of(const Heads& heads, int b, int head, int first, int tokens, int width) {
  return {static_cast<const T*>(heads.data) + b * heads.batch + head * heads.head,
          heads.token,
          first,
          tokens,
          width,
          heads.wide};
}

}  // namespace fastllm::cuda
