#include "cpu/attention_softmax.h"
#include "cpu/bfloat16_attention.h"

namespace fastllm {
namespace {

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
      if (a.dropout) drop_weights(a, at, strip, scores, sk, keep_buffer);
      tile_product<C>(strip.rows, sdv, std::min(end, at.keys) - begin, {scores + begin, sk, 1}, v + begin * sdv, sdv, o,
                      sdv, true);
    });
  }
  finish_rows(a, b, h, query, queries, out, sdv, maxima, sums, output, statistics);
}

}  // namespace

template <typename T>
void attention_forward(const Attention<T>& a, const Heads<T*>& output, SoftmaxStatistics<Compute<T>>* statistics) {
  if constexpr (std::is_same_v<T, BFloat16>)
    if (has_bfloat16_attention()) return bfloat16_attention_forward(a, output, statistics);
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
