// Keys are cut at multiples of kSplit positions. A task takes one split of one head of keys and values through all the
// queries that read it; each query's sum over its splits, in order, is its result.
#include "cpu/decode_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/parallel.h"
#include "cpu/register_tile.h"

namespace fastllm {
namespace {

// In fp32 with D = 64 the keys of a split are 16 KiB, as are its values: both stay in L1 while the queries of a group
// pass, and one sequence with one head of 1024 keys still makes 16 tasks.
constexpr int64_t kSplit = 64;

// Keys multiplied at once: as many independent chains of multiply-adds hide the latency of one.
constexpr int64_t kKeys = 4;

// Rows that a task of the second pass adds up: with 12 heads and one sequence, that pass starts no threads.
constexpr int64_t kSumRows = 16;

constexpr int kPartialSlot = 1;

// What a split gives for one query: the sum of its values, weighted relative to the largest score. The two numbers
// stand before the values.
template <typename C>
struct Partial {
  C* values;
  C& maximum() const { return values[-2]; }
  C& sum() const { return values[-1]; }
};

template <typename T>
struct Partials {
  using C = Compute<T>;
  C* data;
  int64_t splits, stride;

  Partials(const DecodeAttention<T>& a, int64_t splits) : splits(splits), stride(a.dv + 2) {
    data = scratch<C>(a.b * a.h * a.tq * splits * stride, kPartialSlot);
  }
  Partial<C> at(int64_t row, int64_t split) const { return {data + (row * splits + split) * stride + 2}; }
};

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// The keys that query i of batch element b sees.
template <typename T>
Range visible(const DecodeAttention<T>& a, int64_t b, int64_t i) {
  const int64_t position = a.lengths[b] - a.tq + i;
  return {std::max<int64_t>(0, position - a.left), std::max<int64_t>(0, position + 1)};
}

Range splits_of(const Range& keys) {
  return keys.empty() ? Range{0, 0} : Range{keys.begin / kSplit, ceil_div(keys.end, kSplit)};
}

// Rows of a head, to be fetched while others are worked on: the values while the keys are, then the next split's keys.
// From 13 to over 22 GB/s on one core of a Zen 5. Null: another query has fetched them.
template <typename T>
struct Ahead {
  const T* rows;
  int64_t stride;

  void fetch(int64_t row, int64_t column) const {
    if (rows) __builtin_prefetch(rows + row * stride + column);
  }
};

// scores[j] = q . keys[j]: each a chain over whole vectors, in order, then the sum of the lanes.
template <typename T>
void products(const Compute<T>* q, const T* keys, int64_t stride, int64_t count, int64_t d, const Ahead<T>& ahead,
              Compute<T>* scores) {
  const auto dots = [&]<int kCount>(int64_t j) __attribute__((always_inline)) {
    Vec<T> sums[kCount];
    unroll<kCount>([&](auto i) { sums[i] = Vec<T>(0); });
    for_each_vec<T>(d, [&](int64_t c, auto load, auto) {
      const Vec<T> part = Vec<T>::loadu(q + c);
      unroll<kCount>([&](auto i) {
        ahead.fetch(j + i, c);
        sums[i] = at::vec::fmadd(load(keys + (j + i) * stride + c), part, sums[i]);
      });
    });
    unroll<kCount>([&](auto i) { scores[j + i] = sum_lanes(sums[i]); });
  };
  int64_t j = 0;
  for (; j + kKeys <= count; j += kKeys) dots.template operator()<kKeys>(j);
  for (; j < count; ++j) dots.template operator()<1>(j);
}

// out += weights[j] * values[j] over j, in order.
template <typename T>
void weighted_sum(const Compute<T>* weights, const T* values, int64_t stride, int64_t count, int64_t dv,
                  const Ahead<T>& ahead, Compute<T>* out) {
  using C = Compute<T>;
  const auto add = [&]<int kCount>(int64_t j) __attribute__((always_inline)) {
    for_each_vec<T>(dv, [&](int64_t c, auto load, auto) {
      const int64_t lanes = std::min(dv - c, kLanes<T>);
      Vec<T> sum = lanes == kLanes<T> ? Vec<T>::loadu(out + c) : vload_part<C>(out + c, lanes);
      unroll<kCount>([&](auto i) {
        ahead.fetch(j + i, c);
        sum = at::vec::fmadd(load(values + (j + i) * stride + c), Vec<T>(weights[j + i]), sum);
      });
      if (lanes == kLanes<T>)
        sum.store(out + c);
      else
        vstore_part<C>(out + c, sum, lanes);
    });
  };
  int64_t j = 0;
  for (; j + kKeys <= count; j += kKeys) add.template operator()<kKeys>(j);
  for (; j < count; ++j) add.template operator()<1>(j);
}

// Scores of `count` keys become their weights relative to the largest one.
template <typename C>
void softmax(C* scores, int64_t count, const Partial<C>& partial) {
  using V = at::vec::Vectorized<C>;
  constexpr C kNever = -std::numeric_limits<C>::infinity();
  const int64_t padded = round_up(count, V::size());
  std::fill(scores + count, scores + padded, kNever);
  V largest(kNever);
  for (int64_t j = 0; j < padded; j += V::size()) largest = at::vec::maximum(largest, V::loadu(scores + j));
  partial.maximum() = max_lanes(largest);
  const V shift(partial.maximum() == kNever ? C(0) : partial.maximum());
  V sum(C(0));
  for (int64_t j = 0; j < padded; j += V::size()) {
    const V weight = vexp_nonpositive(V::loadu(scores + j) - shift);
    weight.store(scores + j);
    sum = sum + weight;
  }
  partial.sum() = sum_lanes(sum);
}

// One query, scaled, over the keys [begin, end) of one split.
template <typename T>
void attend(const DecodeAttention<T>& a, int64_t b, int64_t h, int64_t i, const Range& keys, const Compute<T>* q,
            Compute<T>* scores, const Partial<Compute<T>>& partial) {
  using C = Compute<T>;
  const int64_t kv_head = h / (a.h / a.hkv), count = keys.end - keys.begin;
  const T *first_key = a.key.at(b, keys.begin, kv_head), *first_value = a.value.at(b, keys.begin, kv_head);
  const bool fetch = i == 0 && h % (a.h / a.hkv) == 0;
  products<T>(q, first_key, a.key.token, count, a.d, {fetch ? first_value : nullptr, a.value.token}, scores);
  if (a.softcap != C(0))
    for (int64_t j = 0; j < count; ++j) scores[j] = a.softcap * std::tanh(scores[j] / a.softcap);
  if (a.alibi_slopes) {
    const C slope = a.alibi_slopes[b * a.alibi_strides[0] + h * a.alibi_strides[1]];
    const int64_t position = a.lengths[b] - a.tq + i;
    for (int64_t j = 0; j < count; ++j) scores[j] -= slope * static_cast<C>(position - keys.begin - j);
  }
  softmax(scores, count, partial);
  std::fill(partial.values, partial.values + a.dv, C(0));
  weighted_sum<T>(scores, first_value, a.value.token, count, a.dv,
                  {fetch ? first_key + count * a.key.token : nullptr, a.key.token}, partial.values);
}

// All the queries that read one split of one head of keys and values.
template <typename T>
void attend_split(const DecodeAttention<T>& a, int64_t b, int64_t kv_head, int64_t split, const Partials<T>& partials) {
  using C = Compute<T>;
  const int64_t group = a.h / a.hkv, padded_d = round_up(a.d, kLanes<T>);
  C* scores = scratch<C>(kSplit + padded_d);
  C* q = scores + kSplit;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    for (int64_t i = 0; i < a.tq; ++i) {
      const Range seen = visible(a, b, i);
      const Range keys{std::max(seen.begin, split * kSplit), std::min(seen.end, (split + 1) * kSplit)};
      if (keys.empty()) continue;
      const T* from = a.query.at(b, i, h);
      for (int64_t c = 0; c < padded_d; ++c) q[c] = c < a.d ? static_cast<C>(from[c]) * a.scale : C(0);
      attend(a, b, h, i, keys, q, scores, partials.at((b * a.h + h) * a.tq + i, split));
    }
  }
}

// The sum of a query's splits, in order, over the first of them.
template <typename T>
void add_splits(const DecodeAttention<T>& a, int64_t row, const Partials<T>& partials, const Heads<T*>& output) {
  using C = Compute<T>;
  const int64_t i = row % a.tq, h = row / a.tq % a.h, b = row / a.tq / a.h;
  const Range splits = splits_of(visible(a, b, i));
  T* out = output.at(b, i, h);
  if (splits.empty()) {
    std::fill(out, out + a.dv, static_cast<T>(0));
    return;
  }
  C maximum = -std::numeric_limits<C>::infinity();
  for (int64_t split = splits.begin; split < splits.end; ++split)
    maximum = MaximumOrNan{}(partials.at(row, split).maximum(), maximum);
  const auto factor = [&](const Partial<C>& partial) {
    return partial.maximum() == maximum ? C(1) : std::exp(partial.maximum() - maximum);
  };
  const Partial<C> total = partials.at(row, splits.begin);
  const C first = factor(total);
  for (int64_t c = 0; c < a.dv; ++c) total.values[c] *= first;
  total.sum() *= first;
  for (int64_t split = splits.begin + 1; split < splits.end; ++split) {
    const Partial<C> partial = partials.at(row, split);
    const C scaled = factor(partial);
    for (int64_t c = 0; c < a.dv; ++c) total.values[c] += scaled * partial.values[c];
    total.sum() += scaled * partial.sum();
  }
  for (int64_t c = 0; c < a.dv; ++c) out[c] = static_cast<T>(total.values[c] / total.sum());
}

}  // namespace

template <typename T>
void decode_attention(const DecodeAttention<T>& a, const Heads<T*>& output) {
  if (a.b == 0 || a.h == 0 || a.tq == 0) return;
  const int64_t longest = *std::max_element(a.lengths, a.lengths + a.b);
  const Partials<T> partials(a, ceil_div(longest, kSplit));
  parallel_for(a.b * a.hkv * partials.splits, [&](int64_t task) {
    const int64_t bh = task / partials.splits;
    attend_split(a, bh / a.hkv, bh % a.hkv, task % partials.splits, partials);
  });
  const int64_t rows = a.b * a.h * a.tq;
  parallel_for(ceil_div(rows, kSumRows), [&](int64_t task) {
    for (int64_t row = task * kSumRows; row < std::min(rows, (task + 1) * kSumRows); ++row)
      add_splits(a, row, partials, output);
  });
}

#define INSTANTIATE(T) template void decode_attention(const DecodeAttention<T>&, const Heads<T*>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
