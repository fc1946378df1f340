#include "cpu/bfloat16_attention.h"

#include <stdexcept>

#include "cpu/attention_gradients.h"
#include "cpu/attention_softmax.h"

#ifdef FASTLLM_AMX
#include "cpu/amx.h"
#endif

namespace fastllm {

#ifndef FASTLLM_AMX

bool has_bfloat16_attention() {
  return false;
}

void bfloat16_attention_forward(const Attention<BFloat16>&, const Heads<BFloat16*>&, SoftmaxStatistics<float>*) {
  throw std::logic_error("fastllm: this build has no attention of bfloat16");
}

void bfloat16_attention_backward(const Attention<BFloat16>&, const AttentionGradients<BFloat16>&) {
  throw std::logic_error("fastllm: this build has no attention of bfloat16");
}

#else

namespace {

using amx::Panels;
using amx::Runs;
using amx::Side;

constexpr int64_t kSide = amx::kSide;  // rows of a strip
static_assert(kKeyTile % kSide == 0);

// Queries of a tile, of forward: the first that gives kForwardTasks tiles, else the last. Each tile packs all the keys
// and values that it sees, which costs as much as about 64 queries do.
constexpr int64_t kQueryTiles[] = {256, 128, 64, 32};
constexpr int64_t kForwardTasks = 16;

// Queries of a tile, of backward: over so many the gradients of keys and values are summed in tile registers.
constexpr int64_t kGradientTile = 128;
static_assert(kGradientTile % kSide == 0);

int64_t whole(int64_t size) {
  return round_up(size, kSide);
}

// Scratch for `count` elements of bfloat16, as scratch_arrays counts it.
int64_t halves(int64_t count) {
  return ceil_div(count, 2);
}

BFloat16* as_bfloat16(float* data) {
  return reinterpret_cast<BFloat16*>(data);
}

// Rows [row, row + rows) of a tile and the columns that they compute: whole blocks around those they see.
Strip strip_of(const Attention<BFloat16>& a, const TileAt& at, int64_t row) {
  const int64_t rows = std::min(kSide, at.queries - row);
  const Columns seen = visible_columns(a, at, row, rows);
  if (seen.begin >= seen.end) return {row, rows, {0, 0}};
  return {row, rows, {seen.begin / kSide * kSide, whole(seen.end)}};
}

void scale_rows(const Strip& strip, float* scores, float scale) {
  using V = Vec<BFloat16>;
  const V factor(scale);
  for (int64_t i = 0; i < strip.rows; ++i, scores += kKeyTile)
    for (int64_t j = strip.columns.begin; j < strip.columns.end; j += V::size())
      (V::loadu(scores + j) * factor).store(scores + j);
}

// A strip's rows as a panel of A along the keys.
void pack_strip_a(const Strip& strip, const float* scores, BFloat16* out) {
  for (int64_t j = strip.columns.begin; j < strip.columns.end; j += kSide, out += amx::kStep)
    for (int64_t i = 0; i < kSide; ++i) {
      const float* row = scores + i * kKeyTile + j;
      const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
      _mm512_store_si512(out + i * amx::kDepth, reinterpret_cast<__m512i>(rounded));
    }
}

// A strip's rows as a step of B along the queries: in each panel of kSide keys, `stride` elements from one to the next.
void pack_strip_b(const Strip& strip, const float* scores, BFloat16* out, int64_t stride) {
  const __m512i in_pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t j = 0; j < kKeyTile; j += amx::kPairs) {
    BFloat16* tile = out + j / kSide * stride + j % kSide / amx::kPairs * amx::kTileElements;
    const bool computed = strip.columns.begin <= j && j < strip.columns.end;
    for (int64_t i = 0; i < kSide; i += 2, tile += amx::kDepth) {
      const float* row = scores + i * kKeyTile + j;
      __m512i pairs = _mm512_setzero_si512();
      if (computed)
        pairs = _mm512_permutexvar_epi16(in_pairs, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(
                                                       _mm512_loadu_ps(row + kKeyTile), _mm512_loadu_ps(row))));
      _mm512_store_si512(tile, pairs);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------------------------------

void forward_tile(const Attention<BFloat16>& a, int64_t b, int64_t h, int64_t query, int64_t queries,
                  const Heads<BFloat16*>& output, SoftmaxStatistics<float>* statistics) {
  const int64_t kv_head = h / (a.h / a.hkv), sd = whole(a.d), sdv = whole(a.dv), rows = whole(queries);
  const auto [out, scores, maxima, sums, keep_buffer, q_data, k_data, v_data, p_data] =
      scratch_arrays<float>({rows * sdv, kSide * kKeyTile, rows, rows, kKeyTile + kDropoutMargin, halves(rows * sd),
                             halves(kKeyTile * sd), halves(kKeyTile * sdv), halves(kSide * kKeyTile)});
  BFloat16 *q = as_bfloat16(q_data), *k = as_bfloat16(k_data), *v = as_bfloat16(v_data), *p = as_bfloat16(p_data);
  std::fill(out, out + rows * sdv, 0.0f);
  std::fill(maxima, maxima + rows, -std::numeric_limits<float>::infinity());
  std::fill(sums, sums + rows, 0.0f);
  amx::pack<Runs::kAlong, Side::kA>(a.query.at(b, query, h), a.query.token, queries, a.d, q);

  const amx::Tiles tiles;
  const Columns seen = visible_columns(a, {b, h, query, queries, 0, key_count(a, b)}, 0, queries);
  for (int64_t key = seen.begin / kKeyTile * kKeyTile; key < seen.end; key += kKeyTile) {
    const TileAt at{b, h, query, queries, key, std::min(kKeyTile, seen.end - key)};
    amx::pack<Runs::kAlong, Side::kB>(a.key.at(b, key, kv_head), a.key.token, at.keys, a.d, k);
    amx::pack<Runs::kAcross, Side::kB>(a.value.at(b, key, kv_head), a.value.token, a.dv, at.keys, v);
    for (int64_t row = 0; row < queries; row += kSide) {
      const Strip strip = strip_of(a, at, row);
      const auto [begin, end] = strip.columns;
      if (begin == end) continue;
      amx::product(kSide, end - begin, sd / amx::kDepth, {q + row * sd, 0}, {k + begin * sd, kSide * sd},
                   scores + begin, kKeyTile, false);
      scale_rows(strip, scores, a.scale);
      finish_scores(a, at, strip, scores, kKeyTile);
      online_softmax<BFloat16>(strip, scores, kKeyTile, maxima + row, sums + row, out + row * sdv, sdv);
      if (a.dropout) drop_weights(a, at, strip, scores, kKeyTile, keep_buffer);
      pack_strip_a(strip, scores, p);
      const int64_t first = begin / amx::kDepth * amx::kStep;
      amx::product(kSide, a.dv, (end - begin) / amx::kDepth, {p, 0}, {v + first, whole(at.keys) * kSide},
                   out + row * sdv, sdv, true);
    }
  }
  finish_rows(a, b, h, query, queries, out, sdv, maxima, sums, output, statistics);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------------------------------

// The queries of all heads that share one of keys, packed once for a sweep over keys: as A, for scores and dP, and
// transposed, a tile of queries after the other, as A of dK^T = Q^T dS and dV^T = dO^T P.
struct PackedQueries {
  int64_t sd, sdv, rows;  // rows of a head: whole tiles
  BFloat16 *q, *go, *qt, *got;

  void pack(const Attention<BFloat16>& a, const AttentionGradients<BFloat16>& g, int64_t b, int64_t h,
            int64_t member) const {
    amx::pack<Runs::kAlong, Side::kA>(a.query.at(b, 0, h), a.query.token, a.tq, a.d, q + member * rows * sd);
    amx::pack<Runs::kAlong, Side::kA>(g.grad_output.at(b, 0, h), g.grad_output.token, a.tq, a.dv,
                                      go + member * rows * sdv);
    for (int64_t t = 0; t < a.tq; t += kGradientTile) {
      const int64_t queries = std::min(kGradientTile, a.tq - t), at = member * rows + t;
      amx::pack<Runs::kAcross, Side::kA>(a.query.at(b, t, h), a.query.token, a.d, queries, qt + at * sd);
      amx::pack<Runs::kAcross, Side::kA>(g.grad_output.at(b, t, h), g.grad_output.token, a.dv, queries, got + at * sdv);
    }
  }
};

// Scratch of a sweep over keys, and where its results are.
struct Workspace {
  int64_t sd, sdv;
  PackedQueries queries;
  float *scores, *gradients, *slopes, *keep, *delta, *dq, *strip_dq, *dkt, *dvt, *rows;
  BFloat16 *k, *v, *kx;    // B of scores, of dP, of dQ
  BFloat16 *p, *ds, *dsa;  // a tile's weights and gradients as B along its queries; a strip's gradients as A

  // `own_dq`: rows of dQ that are kept here.
  Workspace(const Attention<BFloat16>& a, int64_t own_dq) : sd(whole(a.d)), sdv(whole(a.dv)) {
    const int64_t group = a.h / a.hkv, rows_of_head = round_up(a.tq, kGradientTile), all = group * rows_of_head;
    const int64_t widest = std::max(sd, sdv);
    const auto arrays = scratch_arrays<float>({kSide * kKeyTile,
                                               kSide * kKeyTile,
                                               kSide * kKeyTile,
                                               kKeyTile + kDropoutMargin,
                                               group * a.tq,
                                               own_dq * sd,
                                               kSide * sd,
                                               sd * kKeyTile,
                                               sdv * kKeyTile,
                                               kKeyTile * widest,
                                               halves(all * sd),
                                               halves(all * sdv),
                                               halves(all * sd),
                                               halves(all * sdv),
                                               halves(kKeyTile * sd),
                                               halves(kKeyTile * sdv),
                                               halves(kKeyTile * sd),
                                               halves(kGradientTile * kKeyTile),
                                               halves(kGradientTile * kKeyTile),
                                               halves(kSide * kKeyTile)});
    float** const floats[] = {&scores, &gradients, &slopes, &keep, &delta, &dq, &strip_dq, &dkt, &dvt, &rows};
    for (size_t i = 0; i < std::size(floats); ++i) *floats[i] = arrays[i];
    queries.sd = sd, queries.sdv = sdv, queries.rows = rows_of_head;
    BFloat16** const packed[] = {&queries.q, &queries.go, &queries.qt, &queries.got, &k, &v, &kx, &p, &ds, &dsa};
    for (size_t i = 0; i < std::size(packed); ++i) *packed[i] = as_bfloat16(arrays[std::size(floats) + i]);
  }
};

// A tile of queries against the keys in w: adds to dK^T and dV^T, and to dq, its rows of dQ. Rows past the last query,
// which are packed as zeros, count as zeros in all five products.
void backward_tile(const Attention<BFloat16>& a, const AttentionGradients<BFloat16>& g, const TileAt& at,
                   int64_t member, const Workspace& w, float* dq) {
  const int64_t packed_row = member * w.queries.rows + at.query, steps = ceil_div(at.queries, amx::kDepth);
  const int64_t panel = steps * amx::kStep;  // of p and ds
  int64_t first = steps, last = 0;           // steps of the tile in which something is seen
  for (int64_t row = 0; row < at.queries; row += kSide) {
    const Strip strip = strip_of(a, at, row);
    const auto [begin, end] = strip.columns;
    if (begin == end && first == steps) continue;
    const int64_t step = row / kSide;
    if (begin < end) {
      first = std::min(first, step), last = step + 1;
      amx::product(kSide, end - begin, w.sd / amx::kDepth, {w.queries.q + (packed_row + row) * w.sd, 0},
                   {w.k + begin * w.sd, kSide * w.sd}, w.scores + begin, kKeyTile, false);
      scale_rows(strip, w.scores, a.scale);
      finish_scores(a, at, strip, w.scores, kKeyTile, w.slopes);
      amx::product(kSide, end - begin, w.sdv / amx::kDepth, {w.queries.go + (packed_row + row) * w.sdv, 0},
                   {w.v + begin * w.sdv, kSide * w.sdv}, w.gradients + begin, kKeyTile, false);
      score_gradients(a, g, at, strip, w.delta + member * a.tq, w.scores, w.gradients, kKeyTile, w.keep, w.slopes);
      pack_strip_a(strip, w.gradients, w.dsa);
      const Panels keys{w.kx + begin / amx::kDepth * amx::kStep, whole(at.keys) * kSide};
      const int64_t key_steps = (end - begin) / amx::kDepth;
      if (strip.rows == kSide) {
        amx::product(kSide, a.d, key_steps, {w.dsa, 0}, keys, dq + row * w.sd, w.sd, true);
      } else {  // whole tiles would reach into another head's rows
        amx::product(kSide, a.d, key_steps, {w.dsa, 0}, keys, w.strip_dq, w.sd, false);
        float* to = dq + row * w.sd;
        for (int64_t i = 0; i < strip.rows * w.sd; ++i) to[i] += w.strip_dq[i];
      }
    }
    pack_strip_b(strip, w.scores, w.p + step * amx::kStep, panel);
    pack_strip_b(strip, w.gradients, w.ds + step * amx::kStep, panel);
  }
  if (first >= last) return;
  const int64_t from = first * amx::kStep;
  amx::product(a.dv, at.keys, last - first, {w.queries.got + packed_row * w.sdv + from, panel}, {w.p + from, panel},
               w.dvt, kKeyTile, true);
  amx::product(a.d, at.keys, last - first, {w.queries.qt + packed_row * w.sd + from, panel}, {w.ds + from, panel},
               w.dkt, kKeyTile, true);
}

// Rows of a gradient of keys or values from its transpose.
void store_transposed(const float* transposed, int64_t width, int64_t rows, float scale, float* buffer, BFloat16* out,
                      int64_t out_stride) {
  const int64_t stride = whole(width);
  for (int64_t c = 0; c < width; c += amx::kRows)
    for (int64_t j = 0; j < rows; j += amx::kRows) {
      amx::TileRows tile;
      unroll<16>([&](auto i) { tile.row[i] = _mm512_loadu_si512(transposed + (c + i) * kKeyTile + j); });
      tile.transpose();
      unroll<16>([&](auto i) { _mm512_storeu_si512(buffer + (j + i) * stride + c, tile.row[i]); });
    }
  store_rows(buffer, stride, rows, width, scale, out, out_stride);
}

// As backward_head of attention_backward.cpp, whose tiles of keys, splits and sums these are.
void backward_head(const Attention<BFloat16>& a, const AttentionGradients<BFloat16>& g, int64_t b, int64_t kv_head,
                   int64_t split, int64_t splits, float* partial_dq) {
  const int64_t group = a.h / a.hkv, end = key_count(a, b);
  Workspace w(a, partial_dq ? 0 : group * a.tq);
  if (partial_dq) w.dq = partial_dq + kv_head * group * a.tq * w.sd;
  std::fill(w.dq, w.dq + group * a.tq * w.sd, 0.0f);
  for (int64_t i = 0; i < group; ++i) {
    row_deltas(a, g, b, kv_head * group + i, w.delta + i * a.tq);
    w.queries.pack(a, g, b, kv_head * group + i, i);
  }
  const amx::Tiles tiles;
  for (int64_t key = split * kKeyTile; key < a.tk; key += splits * kKeyTile) {
    const int64_t rows = std::min(kKeyTile, a.tk - key), keys = std::clamp<int64_t>(end - key, 0, rows);
    std::fill(w.dkt, w.dkt + w.sd * kKeyTile, 0.0f);
    std::fill(w.dvt, w.dvt + w.sdv * kKeyTile, 0.0f);
    Rows seeing{0, 0};
    if (keys > 0) {
      const BFloat16* key_rows = a.key.at(b, key, kv_head);
      amx::pack<Runs::kAlong, Side::kB>(key_rows, a.key.token, keys, a.d, w.k);
      amx::pack<Runs::kAcross, Side::kB>(key_rows, a.key.token, a.d, keys, w.kx);
      amx::pack<Runs::kAlong, Side::kB>(a.value.at(b, key, kv_head), a.value.token, keys, a.dv, w.v);
      seeing = seeing_rows(a, {b, kv_head * group, 0, a.tq, key, keys}, 0, keys);
    }
    for (int64_t member = 0; member < group; ++member)
      for (int64_t query = seeing.begin / kGradientTile * kGradientTile; query < seeing.end; query += kGradientTile) {
        const TileAt at{b, kv_head * group + member, query, std::min(kGradientTile, a.tq - query), key, keys};
        backward_tile(a, g, at, member, w, w.dq + (member * a.tq + query) * w.sd);
      }
    store_transposed(w.dkt, a.d, rows, a.scale, w.rows, g.grad_key.at(b, key, kv_head), g.grad_key.token);
    store_transposed(w.dvt, a.dv, rows, 1.0f, w.rows, g.grad_value.at(b, key, kv_head), g.grad_value.token);
  }
  if (partial_dq) return;
  for (int64_t member = 0; member < group; ++member)
    store_rows(w.dq + member * a.tq * w.sd, w.sd, a.tq, a.d, a.scale, g.grad_query.at(b, 0, kv_head * group + member),
               g.grad_query.token);
}

}  // namespace

bool has_bfloat16_attention() {
  return true;
}

void bfloat16_attention_forward(const Attention<BFloat16>& a, const Heads<BFloat16*>& output,
                                SoftmaxStatistics<float>* statistics) {
  int64_t size = 0;
  for (int64_t queries : kQueryTiles) {
    size = queries;
    if (a.b * a.h * ceil_div(a.tq, size) >= kForwardTasks) break;
  }
  const int64_t tiles = ceil_div(a.tq, size);
  parallel_for(a.b * a.h * tiles, [&](int64_t task) {
    const int64_t query = (tiles - 1 - task / (a.b * a.h)) * size;  // with causality the last tiles take longest: first
    const int64_t bh = task % (a.b * a.h);
    forward_tile(a, bh / a.h, bh % a.h, query, std::min(size, a.tq - query), output, statistics);
  });
}

void bfloat16_attention_backward(const Attention<BFloat16>& a, const AttentionGradients<BFloat16>& g) {
  sweep_heads(a, g, whole(a.d), backward_head);
}

#endif

}  // namespace fastllm
