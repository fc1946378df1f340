#include "cpu/attention_gradients.h"
#include "cpu/bfloat16_attention.h"

namespace fastllm {
namespace {

// Scratch of a sweep over keys. Everything in the compute type, rows padded.
template <typename C>
struct Workspace {
  int64_t sd, sdv, sk = kKeyTile;
  C *q, *go, *k, *kt, *vt, *p, *ds, *dk, *dv, *dq, *delta, *slopes, *keep;

  // `own_dq`: rows of dQ that are kept here.
  Workspace(int64_t d, int64_t dv_size, int64_t queries, int64_t own_dq) : sd(padded<C>(d)), sdv(padded<C>(dv_size)) {
    const auto arrays = scratch_arrays<C>({kQueryTile * sd, kQueryTile * sdv, kKeyTile * sd, d * sk, dv_size * sk,
                                           kQueryTile * sk, kQueryTile * sk, kKeyTile * sd, kKeyTile * sdv, own_dq * sd,
                                           queries, kStripRows * sk, kKeyTile + kDropoutMargin});
    C** const members[] = {&q, &go, &k, &kt, &vt, &p, &ds, &dk, &dv, &dq, &delta, &slopes, &keep};
    for (size_t i = 0; i < arrays.size(); ++i) *members[i] = arrays[i];
  }
};

// One tile of queries against the keys in w: adds to dk and dv, and to dq, its rows of dQ.
template <typename T>
void backward_tile(const Attention<T>& a, const AttentionGradients<T>& g, const TileAt& at,
                   const Workspace<Compute<T>>& w, const Compute<T>* delta, Compute<T>* dq) {
  using C = Compute<T>;
  load_rows(a.query.at(at.b, at.query, at.h), a.query.token, at.queries, a.d, a.scale, w.q, w.sd);
  load_rows(g.grad_output.at(at.b, at.query, at.h), g.grad_output.token, at.queries, a.dv, C(1), w.go, w.sdv);
  // What no strip computes is 0 to the sums over queries below.
  std::fill(w.p, w.p + at.queries * w.sk, C(0));
  std::fill(w.ds, w.ds + at.queries * w.sk, C(0));
  for_each_strip(a, at, [&](const Strip& strip) {
    const auto [begin, end] = strip.columns;
    C* p = w.p + strip.row * w.sk;
    C* ds = w.ds + strip.row * w.sk;
    tile_product<C>(strip.rows, end - begin, a.d, {w.q + strip.row * w.sd, w.sd, 1}, w.kt + begin, w.sk, p + begin,
                    w.sk, false);
    finish_scores(a, at, strip, p, w.sk, w.slopes);
    tile_product<C>(strip.rows, end - begin, a.dv, {w.go + strip.row * w.sdv, w.sdv, 1}, w.vt + begin, w.sk, ds + begin,
                    w.sk, false);
    score_gradients(a, g, at, strip, delta, p, ds, w.sk, w.keep, w.slopes);
    tile_product<C>(strip.rows, w.sd, std::min(end, at.keys) - begin, {ds + begin, w.sk, 1}, w.k + begin * w.sd, w.sd,
                    dq + strip.row * w.sd, w.sd, true);
  });
  for (int64_t j = 0; j < at.keys; j += kStripRows) {
    const int64_t keys = std::min(kStripRows, at.keys - j);
    const auto [first, last] = seeing_rows(a, at, j, keys);
    const int64_t rows = last - first, corner = first * w.sk + j;
    tile_product<C>(keys, w.sdv, rows, {w.p + corner, 1, w.sk}, w.go + first * w.sdv, w.sdv, w.dv + j * w.sdv, w.sdv,
                    true);
    tile_product<C>(keys, w.sd, rows, {w.ds + corner, 1, w.sk}, w.q + first * w.sd, w.sd, w.dk + j * w.sd, w.sd,
                    true);  // q holds the scale
  }
}

// Gradients of one head of keys: a sweep over each `splits`th of its tiles of keys, and for each over the tiles of
// queries that see it, for every head of queries that shares it. With several splits their parts of dQ, (H, Tq, sd)
// here, wait in `partial_dq` to be added.
template <typename T>
void backward_head(const Attention<T>& a, const AttentionGradients<T>& g, int64_t b, int64_t kv_head, int64_t split,
                   int64_t splits, Compute<T>* partial_dq) {
  using C = Compute<T>;
  const int64_t group = a.h / a.hkv, end = key_count(a, b);
  Workspace<C> w(a.d, a.dv, group * a.tq, partial_dq ? 0 : group * a.tq);
  if (partial_dq) w.dq = partial_dq + kv_head * group * a.tq * w.sd;
  std::fill(w.dq, w.dq + group * a.tq * w.sd, C(0));
  for (int64_t i = 0; i < group; ++i) row_deltas(a, g, b, kv_head * group + i, w.delta + i * a.tq);
  for (int64_t key = split * kKeyTile; key < a.tk; key += splits * kKeyTile) {
    const int64_t rows = std::min(kKeyTile, a.tk - key), keys = std::clamp<int64_t>(end - key, 0, rows);
    std::fill(w.dk, w.dk + rows * w.sd, C(0));
    std::fill(w.dv, w.dv + rows * w.sdv, C(0));
    if (keys > 0) {
      load_rows(a.key.at(b, key, kv_head), a.key.token, keys, a.d, C(1), w.k, w.sd);
      load_transposed(a.key.at(b, key, kv_head), a.key.token, keys, a.d, w.kt, w.sk);
      load_transposed(a.value.at(b, key, kv_head), a.value.token, keys, a.dv, w.vt, w.sk);
    }
    const Rows seeing = keys > 0 ? seeing_rows(a, {b, kv_head * group, 0, a.tq, key, keys}, 0, keys) : Rows{0, 0};
    for (int64_t member = 0; member < group; ++member) {
      for (int64_t query = seeing.begin; query < seeing.end; query += kQueryTile) {
        const TileAt at{b, kv_head * group + member, query, std::min(kQueryTile, seeing.end - query), key, keys};
        backward_tile(a, g, at, w, w.delta + member * a.tq, w.dq + (member * a.tq + query) * w.sd);
      }
    }
    store_rows<T>(w.dk, w.sd, rows, a.d, C(1), g.grad_key.at(b, key, kv_head), g.grad_key.token);
    store_rows<T>(w.dv, w.sdv, rows, a.dv, C(1), g.grad_value.at(b, key, kv_head), g.grad_value.token);
  }
  for (int64_t member = 0; member < group && !partial_dq; ++member) {
    store_rows<T>(w.dq + member * a.tq * w.sd, w.sd, a.tq, a.d, a.scale,
                  g.grad_query.at(b, 0, kv_head * group + member), g.grad_query.token);
  }
}

}  // namespace

template <typename T>
void attention_backward(const Attention<T>& a, const AttentionGradients<T>& g) {
  if constexpr (std::is_same_v<T, BFloat16>)
    if (has_bfloat16_attention()) return bfloat16_attention_backward(a, g);
  sweep_heads(a, g, padded<Compute<T>>(a.d), backward_head<T>);
}

#define INSTANTIATE(T) template void attention_backward(const Attention<T>&, const AttentionGradients<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
