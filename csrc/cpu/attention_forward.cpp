#include "cpu/attention_tile.h"

namespace fastllm {
namespace {

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

template <typename T>
void forward_tile(const Attention<T>& a, int64_t b, int64_t h, int64_t query, const Heads<T*>& output,
                  SoftmaxStatistics<Compute<T>>* statistics) {
  using C = Compute<T>;
  const int64_t queries = std::min(kQueryTile, a.tq - query), kv_head = h / (a.h / a.hkv);
  const int64_t sd = padded<C>(a.d), sdv = padded<C>(a.dv), sk = kKeyTile;
  const auto [q, out, kt, v, scores, maxima, sums, keep_buffer] =
      scratch_arrays<C>({queries * sd, queries * sdv, a.d * sk, kKeyTile * sdv, kStripRows * sk, queries, queries,
                         kKeyTile + kDropoutMargin});
  std::fill(out, out + queries * sdv, C(0));
  std::fill(maxima, maxima + queries, -std::numeric_limits<C>::infinity());
  std::fill(sums, sums + queries, C(0));
  load_rows(a.query.at(b, query, h), a.query.token, queries, a.d, a.scale, q, sd);

  const Columns seen = visible_columns(a, {b, h, query, queries, 0, key_count(a, b)}, 0, queries);
  for (int64_t key = seen.begin / kKeyTile * kKeyTile; key < seen.end; key += kKeyTile) {
    const TileAt at{b, h, query, queries, key, std::min(kKeyTile, seen.end - key)};
    load_transposed(a.key.at(b, key, kv_head), a.key.token, at.keys, a.d, kt, sk);
    load_rows(a.value.at(b, key, kv_head), a.value.token, at.keys, a.dv, C(1), v, sdv);
    for_each_strip(a, at, [&](const Strip& strip) {
      const auto [begin, end] = strip.columns;
      C* o = out + strip.row * sdv;
      tile_product<C>(strip.rows, end - begin, a.d, {q + strip.row * sd, sd, 1}, kt + begin, sk, scores + begin, sk,
                      false);
      finish_scores(a, at, strip, scores, sk);
      online_softmax<T>(strip, scores, sk, maxima + strip.row, sums + strip.row, o, sdv);
      if (a.dropout) {  // after the sums: dropout acts on normalised probabilities
        for (int64_t i = 0; i < strip.rows; ++i) {
          const C* keep = row_multipliers(a, at, strip, i, keep_buffer);
          C* row = scores + i * sk + begin;
          for (int64_t j = 0; j < strip.width(); ++j) row[j] *= keep[j];
        }
      }
      tile_product<C>(strip.rows, sdv, std::min(end, at.keys) - begin, {scores + begin, sk, 1}, v + begin * sdv, sdv, o,
                      sdv, true);
    });
  }
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

}  // namespace

template <typename T>
void attention_forward(const Attention<T>& a, const Heads<T*>& output, SoftmaxStatistics<Compute<T>>* statistics) {
  const int64_t tiles = ceil_div(a.tq, kQueryTile);
  parallel_for(a.b * a.h * tiles, [&](int64_t task) {
    const int64_t tile = tiles - 1 - task / (a.b * a.h);  // with causality the last tiles take longest: first
    const int64_t bh = task % (a.b * a.h);
    forward_tile(a, bh / a.h, bh % a.h, tile * kQueryTile, output, statistics);
  });
}

#define INSTANTIATE(T) \
  template void attention_forward(const Attention<T>&, const Heads<T*>&, SoftmaxStatistics<Compute<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
