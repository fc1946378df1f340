// The softmax of attention's forward, over strips of scores.
#pragma once

#include "cpu/attention_tile.h"

namespace fastllm {

// A strip's scores become probabilities relative to the rows' running maxima. Updates maxima and sums, and scales what
// the output held.
template <typename T>
void online_softmax(const Strip& strip, Compute<T>* scores, int64_t stride, Compute<T>* maxima, Compute<T>* sums,
                    Compute<T>* output, int64_t output_stride) {
  using C = Compute<T>;
  using V = Vec<T>;
  constexpr C kNever = -std::numeric_limits<C>::infinity();
  for (int64_t i = 0; i < strip.rows; ++i) {
    C* row = scores + i * stride;
    V lanes(kNever);
    for (int64_t j = strip.columns.begin; j < strip.columns.end; j += V::size())
      lanes = at::vec::maximum(lanes, V::loadu(row + j));
    const C tile_maximum = max_lanes(lanes);
    const C next = (tile_maximum > maxima[i] || tile_maximum != tile_maximum) ? tile_maximum : maxima[i];
    const C shift = next == kNever ? C(0) : next;  // nothing seen yet: exp(-inf - 0) is the 0 that is meant
    V sum(C(0));
    for (int64_t j = strip.columns.begin; j < strip.columns.end; j += V::size()) {
      const V p = vexp_nonpositive(V::loadu(row + j) - V(shift));
      p.store(row + j);
      sum = sum + p;
    }
    const C correction = maxima[i] == next ? C(1) : std::exp(maxima[i] - shift);
    sums[i] = sums[i] * correction + sum_lanes(sum);
    maxima[i] = next;
    if (correction != C(1)) {
      C* out = output + i * output_stride;
      for (int64_t c = 0; c < output_stride; c += V::size()) (V::loadu(out + c) * V(correction)).store(out + c);
    }
  }
}

// Dropout of a strip's weights; after their sums, as it acts on normalised probabilities.
template <typename T>
void drop_weights(const Attention<T>& a, const TileAt& at, const Strip& strip, Compute<T>* scores, int64_t stride,
                  Compute<T>* keep_buffer) {
  for (int64_t i = 0; i < strip.rows; ++i) {
    const Compute<T>* keep = row_multipliers(a, at, strip, i, keep_buffer);
    Compute<T>* row = scores + i * stride + strip.columns.begin;
    for (int64_t j = 0; j < strip.width(); ++j) row[j] *= keep[j];
  }
}

// Weighted sums of values, `sdv` elements from row to row, to the output of queries [query, query + queries), and their
// statistics.
template <typename T>
void finish_rows(const Attention<T>& a, int64_t b, int64_t h, int64_t query, int64_t queries, Compute<T>* out,
                 int64_t sdv, const Compute<T>* maxima, const Compute<T>* sums, const Heads<T*>& output,
                 SoftmaxStatistics<Compute<T>>* statistics) {
  using C = Compute<T>;
  for (int64_t i = 0; i < queries; ++i) {
    // A row that sees nothing has the sum 0: its output is 0, and its statistics make its probabilities 0 again.
    const bool empty = sums[i] == C(0);
    const C inverse_sum = empty ? C(0) : C(1) / sums[i];
    C* row = out + i * sdv;
    if (a.minus.data) {
      const T* minus = a.minus.at(b, query + i, h);
      for (int64_t c = 0; c < a.dv; ++c) row[c] = row[c] * inverse_sum - static_cast<C>(minus[c]);
    }
    store_rows(row, sdv, 1, a.dv, a.minus.data ? C(1) : inverse_sum, output.at(b, query + i, h), output.token);
    statistics[(b * a.h + h) * a.tq + query + i] = {empty ? C(0) : maxima[i], inverse_sum};
  }
}

}  // namespace fastllm
