#include "cpu/attention_tile.h"

namespace fastllm {
namespace {

// Scratch of one key head's sweep. Everything in the compute type, rows padded.
template <typename C>
struct Workspace {
  int64_t sd, sdv, sk;
  C *q, *go, *k, *kt, *vt, *scores, *dp, *dk, *dv, *dq, *delta, *keep;

  Workspace(int64_t d, int64_t dv_size, int64_t queries)
      : sd(padded<C>(d)), sdv(padded<C>(dv_size)), sk(padded<C>(kTile)) {
    const int64_t sizes[] = {kTile * sd, kTile * sdv, kTile * sd,  d * sk,       dv_size * sk, kTile * sk,
                             kTile * sk, kTile * sd,  kTile * sdv, queries * sd, queries,      kTile + kDropoutMargin};
    C** const parts[] = {&q, &go, &k, &kt, &vt, &scores, &dp, &dk, &dv, &dq, &delta, &keep};
    int64_t total = 0;
    for (int64_t size : sizes) total += size + 16;
    C* next = scratch<C>(total);
    for (int i = 0; i < 12; ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }
};

// delta_i = sum_c grad_output_ic output_ic, which is sum_j dP_ij P_ij.
template <typename T>
void row_deltas(const Attention<T>& a, const AttentionGradients<T>& g, int64_t b, int64_t h, Compute<T>* delta) {
  for (int64_t t = 0; t < a.tq; ++t) {
    const T* go = g.grad_output.at(b, t, h);
    const T* out = g.output.at(b, t, h);
    Vec<T> sum(Compute<T>(0));
    for_each_vec<T>(a.dv, [&](int64_t c, auto load, auto) { sum = at::vec::fmadd(load(go + c), load(out + c), sum); });
    delta[t] = sum_lanes(sum);
  }
}

// scores -> probabilities with dropout (for dV), dp -> the gradient of the scores; both in place.
template <typename T>
void score_gradients(const Attention<T>& a, const AttentionGradients<T>& g, const TileAt& at,
                     const Workspace<Compute<T>>& w) {
  using C = Compute<T>;
  using V = Vec<T>;
  for (int64_t i = 0; i < at.queries; ++i) {
    C* s = w.scores + i * w.sk;
    C* dp = w.dp + i * w.sk;
    const V lse(g.logsumexp[(at.b * a.h + at.h) * a.tq + at.query + i]), delta(w.delta[at.query + i]);
    const C* keep = a.dropout ? row_multipliers(a, at, i, w.keep) : nullptr;
    for (int64_t j = 0; j < at.keys; j += V::size()) {
      const V p = vexp(V::loadu(s + j) - lse);
      // Multipliers past the keys meet probabilities of 0.
      const V multiplier = keep ? V::loadu(keep + j) : V(C(1));
      (p * multiplier).store(s + j);
      (p * (V::loadu(dp + j) * multiplier - delta)).store(dp + j);
    }
    if (g.grad_mask) {
      const int64_t* st = a.mask_strides;
      C* mask = g.grad_mask + at.b * st[0] + at.h * st[1] + (at.query + i) * st[2] + at.key * st[3];
      for (int64_t j = 0; j < at.keys; ++j) mask[j * st[3]] += dp[j];
    }
  }
}

template <typename T>
void store_rows(const Compute<T>* in, int64_t stride, int64_t rows, int64_t width, Compute<T> scale, T* out,
                int64_t out_stride) {
  const Vec<T> factor(scale);
  for (int64_t r = 0; r < rows; ++r) {
    for_each_vec<T>(width, [&](int64_t c, auto, auto store) {
      store(out + r * out_stride + c, Vec<T>::loadu(in + r * stride + c) * factor);
    });
  }
}

// All gradients that one head of keys has a part in: a sweep over its tiles of keys, and for each over the tiles of
// queries that see it, for every head of queries that shares it.
template <typename T>
void backward_head(const Attention<T>& a, const AttentionGradients<T>& g, int64_t b, int64_t kv_head) {
  using C = Compute<T>;
  const int64_t group = a.h / a.hkv, end = key_count(a, b);
  const Workspace<C> w(a.d, a.dv, group * a.tq);
  std::fill(w.dq, w.dq + group * a.tq * w.sd, C(0));
  for (int64_t i = 0; i < group; ++i) row_deltas(a, g, b, kv_head * group + i, w.delta + i * a.tq);
  for (int64_t key = 0; key < a.tk; key += kTile) {
    const int64_t rows = std::min(kTile, a.tk - key), keys = std::clamp<int64_t>(end - key, 0, rows);
    std::fill(w.dk, w.dk + kTile * w.sd, C(0));
    std::fill(w.dv, w.dv + kTile * w.sdv, C(0));
    if (keys > 0) {
      load_rows(a.key.at(b, key, kv_head), a.key.token, keys, a.d, C(1), w.k, w.sd);
      load_transposed(a.key.at(b, key, kv_head), a.key.token, keys, a.d, w.kt, w.sk);
      load_transposed(a.value.at(b, key, kv_head), a.value.token, keys, a.dv, w.vt, w.sk);
    }
    int64_t first = 0;  // the first tile of queries that sees this tile of keys
    if (a.causal) first = std::max<int64_t>(0, key - a.causal_shift) / kTile * kTile;
    for (int64_t member = 0; member < group && keys > 0; ++member) {
      Workspace<C> mine = w;
      mine.delta += member * a.tq;
      for (int64_t query = first; query < a.tq; query += kTile) {
        const TileAt at{b, kv_head * group + member, query, std::min(kTile, a.tq - query), key, keys};
        load_rows(a.query.at(b, query, at.h), a.query.token, at.queries, a.d, a.scale, w.q, w.sd);
        load_rows(g.grad_output.at(b, query, at.h), g.grad_output.token, at.queries, a.dv, C(1), w.go, w.sdv);
        tile_product<C>(at.queries, keys, a.d, w.q, w.sd, 1, w.kt, w.sk, w.scores, w.sk, false);
        mask_scores(a, at, w.scores, w.sk);
        tile_product<C>(at.queries, keys, a.dv, w.go, w.sdv, 1, w.vt, w.sk, w.dp, w.sk, false);
        score_gradients(a, g, at, mine);
        tile_product<C>(keys, w.sdv, at.queries, w.scores, 1, w.sk, w.go, w.sdv, w.dv, w.sdv, true);
        tile_product<C>(keys, w.sd, at.queries, w.dp, 1, w.sk, w.q, w.sd, w.dk, w.sd, true);  // q holds the scale
        C* dq = w.dq + (member * a.tq + query) * w.sd;
        tile_product<C>(at.queries, w.sd, keys, w.dp, w.sk, 1, w.k, w.sd, dq, w.sd, true);
      }
    }
    store_rows<T>(w.dk, w.sd, rows, a.d, C(1), g.grad_key.at(b, key, kv_head), g.grad_key.token);
    store_rows<T>(w.dv, w.sdv, rows, a.dv, C(1), g.grad_value.at(b, key, kv_head), g.grad_value.token);
  }
  for (int64_t member = 0; member < group; ++member) {
    store_rows<T>(w.dq + member * a.tq * w.sd, w.sd, a.tq, a.d, a.scale,
                  g.grad_query.at(b, 0, kv_head * group + member), g.grad_query.token);
  }
}

}  // namespace

// A task a head of keys; where a mask that several of them share gets a gradient, they go to one task, in order.
template <typename T>
void attention_backward(const Attention<T>& a, const AttentionGradients<T>& g) {
  const int64_t batch_tasks = g.grad_mask && !g.mask_batches ? 1 : a.b;
  const int64_t head_tasks = g.grad_mask && !g.mask_heads ? 1 : a.hkv;
  if (a.b == 0 || a.hkv == 0) return;
  parallel_for(batch_tasks * head_tasks, [&](int64_t task) {
    const int64_t batches = a.b / batch_tasks, heads = a.hkv / head_tasks;
    const int64_t b0 = task / head_tasks * batches, h0 = task % head_tasks * heads;
    for (int64_t b = b0; b < b0 + batches; ++b)
      for (int64_t h = h0; h < h0 + heads; ++h) backward_head(a, g, b, h);
  });
}

#define INSTANTIATE(T) template void attention_backward(const Attention<T>&, const AttentionGradients<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
