// Scores of attention in fragments (attention_tile.h): which of them count, what is added to them, which are dropped.
//
// Rows of a fragment are queries and its columns keys; where kOfKeys, rows are keys and columns queries.
#pragma once

#include <type_traits>

#include "cuda/attention.h"
#include "cuda/attention_tile.h"
#include "cuda/dispatch.h"

namespace fastllm::cuda {

constexpr float kLog2e = 1.4426950408889634f;

// [begin, end)
struct Span {
  int begin, end;

  __device__ __forceinline__ bool has(int i) const { return i >= begin && i < end; }
};

// Lanes that differ in the bit kLanes swap: the one without it gives `second` for the other's `first`.
template <int kLanes>
__device__ __forceinline__ void swap_between(uint32_t& first, uint32_t& second) {
  const bool upper = (threadIdx.x & kLanes) != 0;
  const uint32_t received = __shfl_xor_sync(kAllLanes, upper ? first : second, kLanes);
  first = upper ? received : first;
  second = upper ? second : received;
}

// The same with the halves of two words: the low halves are first.
template <int kLanes>
__device__ __forceinline__ void swap_halves_between(uint32_t& a, uint32_t& b) {
  constexpr uint32_t kLow = 0xFFFF, kHigh = 0xFFFF0000;
  const bool upper = (threadIdx.x & kLanes) != 0;
  const uint32_t given = upper ? (a & kLow) | (b << 16) : (a >> 16) | (b & kHigh);
  const uint32_t received = __shfl_xor_sync(kAllLanes, given, kLanes);
  a = upper ? (a & kHigh) | (received & kLow) : (a & kLow) | (received << 16);
  b = upper ? (b & kHigh) | (received >> 16) : (b & kLow) | (received & kHigh);
}

// Of one batch element and one head of queries.
template <typename T, bool kOfKeys>
class Scores {
 public:
  __device__ __forceinline__ Scores(const AttentionParams& p, int b, int head)
      : p_(p),
        b_(b),
        head_(head),
        keys_(p.key_lengths ? static_cast<int>(clamp(p.key_lengths[b], int64_t{0}, int64_t{p.keys})) : p.keys),
        dropout_(p.dropout) {}

  __device__ __forceinline__ void set_head(int head) { head_ = head; }

  // How many keys count: what lies behind them, in a padded batch, may be anything.
  __device__ __forceinline__ int keys() const { return keys_; }

  // Where query 0 stands among the keys.
  __device__ __forceinline__ int first_position() const { return p_.shift + (p_.after_lengths ? keys_ : 0); }

  // How many rows see anything at all, at most.
  __device__ __forceinline__ int rows() const { return kOfKeys ? keys_ : p_.queries; }

  // The columns that a row sees. Both bounds only rise from row to row, as far as rows().
  __device__ __forceinline__ Span seen_by(int row) const {
    if (row >= rows()) return {0, 0};
    const int position = kOfKeys ? row - first_position() : row + first_position();
    int begin = position - (kOfKeys ? p_.right : p_.left), end = position + (kOfKeys ? p_.left : p_.right) + 1;
    if (p_.run_begins) {
      const int64_t token = static_cast<int64_t>(b_) * p_.queries + row;
      begin = max(begin, static_cast<int>(p_.run_begins[token]));
      end = min(end, static_cast<int>(p_.run_ends[token]));
    }
    const int columns = kOfKeys ? p_.queries : keys_;
    begin = clamp(begin, 0, columns);
    return {begin, clamp(end, begin, columns)};
  }

  // The columns that at least one of rows [row, row + count) sees.
  __device__ __forceinline__ Span seen_by(int row, int count) const {
    if (row >= rows()) return {0, 0};
    return {seen_by(row).begin, seen_by(min(row + count, rows()) - 1).end};
  }

  // Whether each of the rows sees each of the columns [column, column + columns).
  __device__ __forceinline__ bool is_whole(int row, int count, int column, int columns) const {
    return row + count <= rows() && seen_by(row + count - 1).begin <= column && seen_by(row).end >= column + columns;
  }

  // Scores are the products times a positive scale: a kernel may leave that to the exponential.
  __device__ __forceinline__ bool are_products() const {
    return p_.mask.kind == AttentionMask::Kind::kNone && !p_.alibi_slopes && p_.softcap == 0.0f && p_.scale > 0.0f;
  }
  // The weight of a score is 2^exponent(score, shift) relative to that of the row's greatest, whose shift_of is
  // `shift`. Of plain products a fused multiply-add makes the exponent; shifts round alike for all of a row. A mask may
  // hold -1e9 or the lowest float, beside which a rounded product would be off by any number: there the difference is
  // first.
  template <bool kProducts>
  __device__ __forceinline__ float shift_of(float score) const {
    return kProducts ? score * to_log2() : score;
  }
  template <bool kProducts>
  __device__ __forceinline__ float exponent(float score, float shift) const {
    return kProducts ? fmaf(score, to_log2(), -shift) : (score - shift) * kLog2e;
  }

  // A score of a product of (row, column), and of what the mask adds; `slope` becomes its derivative by the scaled
  // product.
  __device__ __forceinline__ float score(float product, int row, int column, float masked, float& slope) const {
    const int query = kOfKeys ? column : row, key = kOfKeys ? row : column;
    float score = product * p_.scale;
    slope = 1.0f;
    if (p_.softcap != 0.0f) {
      const float t = tanhf(score / p_.softcap);
      score = p_.softcap * t;
      slope = 1.0f - t * t;
    }
    if (p_.alibi_slopes) {
      const float fall = p_.alibi_slopes[b_ * p_.alibi_strides[0] + head_ * p_.alibi_strides[1]];
      score -= fall * fabsf(static_cast<float>(query + first_position() - key));
    }
    return score + masked;
  }

  // What the mask adds to a fragment's four, `row` and `column` being the first one's; outside of the rows and columns,
  // what it adds to their neighbours. All are loaded at once: behind a branch for each, each would wait for the last.
  __device__ __forceinline__ void load_mask(int row, int column, float (&masked)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) masked[i] = 0.0f;
    switch (p_.mask.kind) {
      case AttentionMask::Kind::kNone:
        return;
      case AttentionMask::Kind::kBool:
        return load_mask<bool>(row, column, masked, [](bool counts) { return counts ? 0.0f : -INFINITY; });
      case AttentionMask::Kind::kFloat32:
        return load_mask<float>(row, column, masked, [](float value) { return value; });
      case AttentionMask::Kind::kNarrow:
        return load_mask<T>(row, column, masked, [](T value) { return to_float(value); });
    }
  }

  // --- Dropout ---

  __device__ __forceinline__ bool drops() const { return !dropout_.is_off(); }

  // The draws of rows g and g + 8 from `row` and columns 2t, 2t + 1 of each tile from `column`: draw[j][half] has the
  // left one in its low half. Eight keys of a query share a Philox block; each lane draws some, and they trade.
  template <int kTiles>
  __device__ __forceinline__ void draw(int row, int column, uint32_t (&draw)[kTiles][2]) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    if constexpr (kOfKeys) {
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        const PhiloxBlock block = eight_keys(column + kOctet * (j + g / 4) + 2 * t + g % 2, row + g / 2 % 2 * 8);
        uint32_t word[4] = {block.word[0], block.word[1], block.word[2], block.word[3]};
        swap_between<16>(word[0], word[2]);
        swap_between<16>(word[1], word[3]);
        swap_between<8>(word[0], word[1]);
        swap_between<8>(word[2], word[3]);
        swap_halves_between<4>(word[0], word[1]);
        swap_halves_between<4>(word[2], word[3]);
        draw[j][0] = word[0], draw[j][1] = word[1];
        draw[j + 1][0] = word[2], draw[j + 1][1] = word[3];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kTiles; j += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const PhiloxBlock block = eight_keys(row + g + 8 * half, column + kOctet * (j + t));
          uint32_t word[4] = {block.word[0], block.word[1], block.word[2], block.word[3]};
          swap_between<2>(word[0], word[2]);
          swap_between<2>(word[1], word[3]);
          swap_between<1>(word[0], word[1]);
          swap_between<1>(word[2], word[3]);
#pragma unroll
          for (int i = 0; i < 4; ++i) draw[j + i][half] = word[i];
        }
      }
    }
  }

  // What a weight is multiplied with; e is its place in the fragment's four.
  __device__ __forceinline__ float factor(const uint32_t (&draw)[2], int e) const {
    return dropout_.factor_of(e % 2 == 0 ? draw[e / 2] & 0xFFFF : draw[e / 2] >> 16);
  }

 private:
  __device__ __forceinline__ float to_log2() const { return p_.scale * kLog2e; }

  template <typename Int>
  __device__ __forceinline__ static Int clamp(Int x, Int low, Int high) {
    return x < low ? low : x > high ? high : x;
  }

  // For rows that start a block each, (B, H, Tq, Tk rounded up to whole blocks); see common/philox.h.
  __device__ __forceinline__ PhiloxBlock eight_keys(int query, int key) const {
    const int blocks = (p_.keys + Philox::kElements - 1) / Philox::kElements;
    const int64_t row = (static_cast<int64_t>(b_) * p_.heads + head_) * p_.queries + query;
    return dropout_.draw(row * blocks + key / Philox::kElements);
  }

  template <typename Mask, typename Convert>
  __device__ __forceinline__ void load_mask(int row, int column, float (&masked)[4], const Convert& convert) const {
    const int64_t* strides = p_.mask.strides;
    const Mask* mask = static_cast<const Mask*>(p_.mask.data) + b_ * strides[0] + head_ * strides[1];
    Mask value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at_row = row + 8 * (i / 2), at_column = column + i % 2;
      const int query = min(kOfKeys ? at_column : at_row, p_.queries - 1);
      const int key = min(kOfKeys ? at_row : at_column, p_.keys - 1);
      value[i] = mask[query * strides[2] + key * strides[3]];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) masked[i] = convert(value[i]);
  }

  const AttentionParams& p_;
  int b_, head_, keys_;
  DropoutMask dropout_;
};

// Calls body(Type<T>(), integral_constant<int, D>()) with the width of tiles that holds all channels.
template <typename Body>
cudaError_t dispatch_channels(const AttentionParams& p, Body&& body) {
  const int channels = p.channels > p.value_channels ? p.channels : p.value_channels;
  return dispatch(p.dtype, [&](auto type) {
    if (channels <= 64) return body(type, std::integral_constant<int, 64>());
    if (channels <= 128) return body(type, std::integral_constant<int, 128>());
    if (channels <= AttentionParams::kMostChannels) return body(type, std::integral_constant<int, 256>());
    return cudaErrorInvalidValue;
  });
}

}  // namespace fastllm::cuda
