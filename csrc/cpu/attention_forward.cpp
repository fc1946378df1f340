#include "cpu/attention_tile.h"

namespace fastllm {
namespace {

// One tile of scores becomes probabilities relative to the rows' running maxima; returns nothing, updates maxima and
// sums and scales what the output held.
template <typename T>
void online_softmax(int64_t queries, Compute<T>* scores, int64_t stride, Compute<T>* maxima, Compute<T>* sums,
                    Compute<T>* output, int64_t output_stride) {
  using C = Compute<T>;
  using V = Vec<T>;
  constexpr C kNever = -std::numeric_limits<C>::infinity();
  for (int64_t i = 0; i < queries; ++i) {
    C* row = scores + i * stride;
    V lanes(kNever);
    for (int64_t j = 0; j < stride; j += V::size()) lanes = at::vec::maximum(lanes, V::loadu(row + j));
    const C tile_maximum = max_lanes(lanes);
    const C next = (tile_maximum > maxima[i] || tile_maximum != tile_maximum) ? tile_maximum : maxima[i];
    const C shift = next == kNever ? C(0) : next;  // nothing seen yet: exp(-inf - 0) is the 0 that is meant
    V sum(C(0));
    for (int64_t j = 0; j < stride; j += V::size()) {
      const V p = vexp(V::loadu(row + j) - V(shift));
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
                  Compute<T>* logsumexp) {
  using C = Compute<T>;
  const int64_t queries = std::min(kTile, a.tq - query), kv_head = h / (a.h / a.hkv);
  const int64_t sd = padded<C>(a.d), sdv = padded<C>(a.dv), sk = padded<C>(kTile);
  C* q = scratch<C>(kTile * (sd + sdv + sk) + a.d * sk + kTile * sdv + 2 * kTile + kTile + kDropoutMargin);
  C* out = q + kTile * sd;
  C* scores = out + kTile * sdv;
  C* kt = scores + kTile * sk;
  C* v = kt + a.d * sk;
  C* maxima = v + kTile * sdv;
  C* sums = maxima + kTile;
  C* keep_buffer = sums + kTile;
  std::fill(out, out + queries * sdv, C(0));
  std::fill(maxima, maxima + queries, -std::numeric_limits<C>::infinity());
  std::fill(sums, sums + queries, C(0));
  load_rows(a.query.at(b, query, h), a.query.token, queries, a.d, a.scale, q, sd);

  int64_t end = key_count(a, b);
  if (a.causal) end = std::clamp<int64_t>(query + queries + a.causal_shift, 0, end);
  for (int64_t key = 0; key < end; key += kTile) {
    const TileAt at{b, h, query, queries, key, std::min(kTile, end - key)};
    load_transposed(a.key.at(b, key, kv_head), a.key.token, at.keys, a.d, kt, sk);
    load_rows(a.value.at(b, key, kv_head), a.value.token, at.keys, a.dv, C(1), v, sdv);
    tile_product<C>(queries, at.keys, a.d, q, sd, 1, kt, sk, scores, sk, false);
    mask_scores(a, at, scores, sk);
    online_softmax<T>(queries, scores, sk, maxima, sums, out, sdv);
    if (a.dropout) {  // after the sums: dropout acts on normalised probabilities
      for (int64_t i = 0; i < queries; ++i) {
        const C* keep = row_multipliers(a, at, i, keep_buffer);
        for (int64_t j = 0; j < at.keys; ++j) scores[i * sk + j] *= keep[j];
      }
    }
    tile_product<C>(queries, sdv, at.keys, scores, sk, 1, v, sdv, out, sdv, true);
  }
  for (int64_t i = 0; i < queries; ++i) {
    // A row that sees nothing has the sum 0: its output is 0, and its logsumexp +inf makes its probabilities 0 again.
    const C scale = sums[i] == C(0) ? C(0) : C(1) / sums[i];
    T* to = output.at(b, query + i, h);
    const Vec<T> factor(scale);
    for_each_vec<T>(a.dv,
                    [&](int64_t c, auto, auto store) { store(to + c, Vec<T>::loadu(out + i * sdv + c) * factor); });
    logsumexp[(b * a.h + h) * a.tq + query + i] =
        sums[i] == C(0) ? std::numeric_limits<C>::infinity() : maxima[i] + std::log(sums[i]);
  }
}

}  // namespace

template <typename T>
void attention_forward(const Attention<T>& a, const Heads<T*>& output, Compute<T>* logsumexp) {
  const int64_t tiles = ceil_div(a.tq, kTile);
  parallel_for(a.b * a.h * tiles, [&](int64_t task) {
    const int64_t tile = tiles - 1 - task / (a.b * a.h);  // with causality the last tiles take longest: first
    const int64_t bh = task % (a.b * a.h);
    forward_tile(a, bh / a.h, bh % a.h, tile * kTile, output, logsumexp);
  });
}

#define INSTANTIATE(T) template void attention_forward(const Attention<T>&, const Heads<T*>&, Compute<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
