// The checks of decode_attention, the same for every device, and its arguments as kernels want them.
#pragma once

#include <algorithm>
#include <cmath>

#include "ops/op.h"

namespace fastllm {

// B batch, H heads of queries, Hkv of keys and values, Tq queries, S capacity of the caches, D head_dim

struct DecodeOptions {
  std::optional<double> scale;
  std::optional<int64_t> window_left;
  const OptionalTensor& alibi_slopes;
  std::optional<double> softcap;
};

// What kernels read. Options have their defaults: a bound that bounds nothing, no cap as 0.
struct DecodeArguments {
  Tensor query, lengths, slopes;  // slopes: (H) or (B, H), in float32, for float64 in float64; undefined: none
  int64_t left;
  double scale, softcap;

  int64_t slopes_stride() const { return slopes.defined() && slopes.dim() == 2 ? slopes.size(1) : 0; }  // of B
};

inline void check_caches(const char* op, const Tensor& query, const Tensor& k_cache, const Tensor& v_cache) {
  check_floating(op, "query", query);
  FASTLLM_CHECK(query.dim() == 4, op, "query", "have shape (B, H, Tq, D)", query.sizes());
  const std::pair<const char*, const Tensor&> caches[] = {{"k_cache", k_cache}, {"v_cache", v_cache}};
  for (const auto& [name, cache] : caches) {
    check_same_dtype(op, name, cache, "query", query);
    check_same_device(op, name, cache, "query", query);
    FASTLLM_CHECK(cache.dim() == 4 && cache.size(0) == query.size(0), op, name,
                  c10::str("have shape (", query.size(0), ", Hkv, S, D)"), cache.sizes());
    FASTLLM_CHECK(cache.stride(3) == 1 || cache.size(3) <= 1, op, name, "have a contiguous last dimension",
                  c10::str("strides ", cache.strides()));
  }
  FASTLLM_CHECK(k_cache.size(3) == query.size(3), op, "k_cache",
                c10::str("have query's head_dim (", query.size(3), ")"), k_cache.sizes());
  FASTLLM_CHECK(v_cache.size(1) == k_cache.size(1) && v_cache.size(2) == k_cache.size(2), op, "v_cache",
                c10::str("have k_cache's heads and capacity (", k_cache.sizes(), ")"), v_cache.sizes());
  const int64_t h = query.size(1), hkv = k_cache.size(1);
  FASTLLM_CHECK(h == hkv || (hkv > 0 && h % hkv == 0), op, "k_cache",
                c10::str("have a divisor of query's ", h, " heads"), k_cache.sizes());
}

inline void check_slopes(const char* op, const OptionalTensor& alibi_slopes, const Tensor& query) {
  if (!alibi_slopes) return;
  const int64_t b = query.size(0), h = query.size(1);
  FASTLLM_CHECK(alibi_slopes->sizes() == at::IntArrayRef({h}) || alibi_slopes->sizes() == at::IntArrayRef({b, h}), op,
                "alibi_slopes", c10::str("have shape (H) = [", h, "] or (B, H) = [", b, ", ", h, "]"),
                alibi_slopes->sizes());
  check_floating(op, "alibi_slopes", *alibi_slopes);
  check_same_device(op, "alibi_slopes", *alibi_slopes, "query", query);
}

// All but the values of lengths, which may be on a GPU.
inline DecodeArguments check_decode_attention(const char* op, const Tensor& query, const Tensor& k_cache,
                                              const Tensor& v_cache, const Tensor& lengths,
                                              const DecodeOptions& options) {
  check_caches(op, query, k_cache, v_cache);
  FASTLLM_CHECK_TYPE(lengths.scalar_type() == at::kLong, op, "lengths", "be int64", lengths.scalar_type());
  check_same_device(op, "lengths", lengths, "query", query);
  check_shape(op, "lengths", lengths, {query.size(0)});
  check_slopes(op, options.alibi_slopes, query);
  const auto& [scale, left, slopes, softcap] = options;
  FASTLLM_CHECK(!left || *left >= 0, op, "window_left", "be at least 0", *left);
  FASTLLM_CHECK(!softcap || *softcap > 0, op, "softcap", "be positive", *softcap);
  const int64_t d = query.size(3), capacity = k_cache.size(2);
  return {.query = query.stride(3) == 1 || d <= 1 ? query : query.contiguous(),
          .lengths = lengths.contiguous(),
          .slopes = slopes ? slopes->to(compute_type(query)).contiguous() : Tensor(),
          .left = std::min(left.value_or(capacity), capacity),
          .scale = scale.value_or(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, d)))),
          .softcap = softcap.value_or(0.0)};
}

// (B, H, Tq, Dv) in (B, Tq, H, Dv) memory order.
inline Tensor decode_output(const Tensor& query, const Tensor& v_cache) {
  return at::empty({query.size(0), query.size(2), query.size(1), v_cache.size(3)}, query.options()).transpose(1, 2);
}

}  // namespace fastllm
