// What attention's backward is made of beside its products: the gradient of a strip's scores, and the sweep over heads.
#pragma once

#include <memory>

#include "cpu/attention_tile.h"

namespace fastllm {

// Below this many independent heads, their keys are split too: enough tasks for any machine's cores to share evenly.
// A constant, as how sums are split must not depend on the machine.
constexpr int64_t kTasks = 16;

// delta_i = sum_c grad_output_ic output_ic, which is sum_j dP_ij P_ij.
template <typename T>
void row_deltas(const Attention<T>& a, const AttentionGradients<T>& g, int64_t b, int64_t h, Compute<T>* delta) {
  for (int64_t t = 0; t < a.tq; ++t) {
    const T* go = g.grad_output.at(b, t, h);
    const T* out = g.output.at(b, t, h);
    Vec<T> sum(Compute<T>(0));
    for_each_vec<T>(a.dv, [&](int64_t c, auto load, auto) { sum = at::vec::fmadd(load(go + c), load(out + c), sum); });
    if (g.residual.data) {
      const T* more = g.residual.at(b, t, h);
      for_each_vec<T>(a.dv,
                      [&](int64_t c, auto load, auto) { sum = at::vec::fmadd(load(go + c), load(more + c), sum); });
    }
    delta[t] = sum_lanes(sum);
  }
}

// For a strip: p, scores, become probabilities with dropout (for dV); ds, which holds dP, the gradient of the scores.
template <typename T>
void score_gradients(const Attention<T>& a, const AttentionGradients<T>& g, const TileAt& at, const Strip& strip,
                     const Compute<T>* delta, Compute<T>* p, Compute<T>* ds, int64_t stride, Compute<T>* keep_buffer,
                     const Compute<T>* cap_slopes) {
  using C = Compute<T>;
  using V = Vec<T>;
  const auto [begin, end] = strip.columns;
  const int64_t query = at.query + strip.row;
  const SoftmaxStatistics<C>* statistics = g.statistics + (at.b * a.h + at.h) * a.tq + query;
  for (int64_t i = 0; i < strip.rows; ++i, p += stride, ds += stride) {
    const V maximum(statistics[i].maximum), inverse_sum(statistics[i].inverse_sum), mean(delta[query + i]);
    const C* keep = a.dropout ? row_multipliers(a, at, strip, i, keep_buffer) - begin : nullptr;
    for (int64_t j = begin; j < end; j += V::size()) {
      const V probability = vexp_nonpositive(V::loadu(p + j) - maximum) * inverse_sum;
      // Multipliers past the keys meet probabilities of 0.
      const V multiplier = keep ? V::loadu(keep + j) : V(C(1));
      (probability * multiplier).store(p + j);
      (probability * (V::loadu(ds + j) * multiplier - mean)).store(ds + j);
    }
    if (g.grad_mask) {
      const int64_t* s = a.mask_strides;
      C* mask = g.grad_mask + at.b * s[0] + at.h * s[1] + (query + i) * s[2] + at.key * s[3];
      for (int64_t j = begin; j < std::min(end, at.keys); ++j) mask[j * s[3]] += ds[j];
    }
    if (a.softcap != C(0)) {  // after the mask, which is added to capped scores
      const C* slopes = cap_slopes + i * stride;
      for (int64_t j = begin; j < end; j += V::size()) (V::loadu(ds + j) * V::loadu(slopes + j)).store(ds + j);
    }
  }
}

// grad_query = scale times the sum of the splits' parts, (splits, B, H, Tq, sd), in order.
template <typename T>
void add_splits(const Attention<T>& a, const AttentionGradients<T>& g, Compute<T>* parts, int64_t splits, int64_t sd) {
  using V = Vec<T>;
  const int64_t tiles = ceil_div(a.tq, kQueryTile), stride = a.b * a.h * a.tq * sd;
  parallel_for(a.b * a.h * tiles, [&](int64_t task) {
    const int64_t bh = task / tiles, query = task % tiles * kQueryTile, rows = std::min(kQueryTile, a.tq - query);
    Compute<T>* first = parts + (bh * a.tq + query) * sd;
    for (int64_t split = 1; split < splits; ++split)
      for (int64_t i = 0; i < rows * sd; i += V::size())
        (V::loadu(first + i) + V::loadu(first + split * stride + i)).store(first + i);
    store_rows<T>(first, sd, rows, a.d, a.scale, g.grad_query.at(bh / a.h, query, bh % a.h), g.grad_query.token);
  });
}

// A task a head of keys, or some of its tiles of keys. Heads and batch elements that share a mask with a gradient go to
// one task, in order; its tiles of keys touch columns of the mask that are their own, if it has columns.
//
// backward_head(a, g, b, kv_head, split, splits, partial_dq) does a head of keys, or a split of it, whose part of dQ
// then goes to partial_dq: (H, Tq, sd).
template <typename T, typename BackwardHead>
void sweep_heads(const Attention<T>& a, const AttentionGradients<T>& g, int64_t sd, const BackwardHead& backward_head) {
  using C = Compute<T>;
  if (a.b == 0 || a.hkv == 0) return;
  const int64_t batch_tasks = g.grad_mask && a.mask_strides[0] == 0 ? 1 : a.b;
  const int64_t head_tasks = g.grad_mask && a.mask_strides[1] == 0 ? 1 : a.hkv;
  const int64_t tasks = batch_tasks * head_tasks;
  int64_t splits = 1;
  if (!g.grad_mask || a.mask_strides[3] != 0)
    splits = std::clamp<int64_t>(kTasks / tasks, 1, std::max<int64_t>(1, ceil_div(a.tk, kKeyTile)));
  const int64_t part = a.h * a.tq * sd;  // of one split and batch element
  std::unique_ptr<C[]> parts(splits > 1 ? new C[splits * a.b * part] : nullptr);
  parallel_for(tasks * splits, [&](int64_t task) {
    const int64_t batches = a.b / batch_tasks, heads = a.hkv / head_tasks;
    const int64_t split = task / tasks, own = task % tasks;
    const int64_t b0 = own / head_tasks * batches, h0 = own % head_tasks * heads;
    for (int64_t b = b0; b < b0 + batches; ++b)
      for (int64_t h = h0; h < h0 + heads; ++h)
        backward_head(a, g, b, h, split, splits, parts ? parts.get() + (split * a.b + b) * part : nullptr);
  });
  if (parts) add_splits(a, g, parts.get(), splits, sd);
}

}  // namespace fastllm
