// What rotary_embedding's kernels are told, the same on every device.
#pragma once

#include <cstdint>

#include "common/philox.h"  // FASTLLM_HOST_DEVICE

namespace fastllm {

// B batch, T tokens, H heads, D head_dim

// The heads of tokens, (B, outer, inner, D): (B, H, T, D), or (B, T, H, D) if tokens_outer. Input's rows of D may lie
// anywhere; the output is contiguous.
struct Rotary {
  int64_t batch, outer, inner, head_dim;
  bool tokens_outer;
  int64_t strides[3];     // of input: batch, outer, inner
  int64_t turning_heads;  // how many of a token's heads turn, the first ones; the others are copied

  // Pair i of `pairs` is elements i and i + pairs, or if interleaved 2 i and 2 i + 1; what lies past them is copied. It
  // turns by the angle whose cosine and sine stand at [position][i] of two contiguous tables of `table_rows` rows.
  int64_t pairs;
  bool interleaved;
  bool inverse;  // turn back
  int64_t table_rows;

  // Token t of sequence b is at `first` + `step` t, plus positions[b, t] if that is not null.
  int64_t first, step;
  const int64_t* positions;
  int64_t position_strides[2];

  FASTLLM_HOST_DEVICE int64_t position(int64_t b, int64_t t) const {
    return first + step * t + (positions ? positions[b * position_strides[0] + t * position_strides[1]] : 0);
  }
};

}  // namespace fastllm
