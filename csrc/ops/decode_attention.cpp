// fastllm::decode_attention. Inference alone: no gradient, and an error where one is asked for.
#include "cpu/decode_attention.h"

#include <algorithm>
#include <cmath>

#include "ops/op.h"

namespace fastllm {
namespace {

constexpr const char* kOp = "decode_attention";

// B batch, H heads of queries, Hkv of keys and values, Tq queries, S capacity of the caches, D head_dim

void check_caches(const Tensor& query, const Tensor& k_cache, const Tensor& v_cache) {
  check_floating(kOp, "query", query);
  FASTLLM_CHECK(query.dim() == 4, kOp, "query", "have shape (B, H, Tq, D)", query.sizes());
  const std::pair<const char*, const Tensor&> caches[] = {{"k_cache", k_cache}, {"v_cache", v_cache}};
  for (const auto& [name, cache] : caches) {
    check_same_dtype(kOp, name, cache, "query", query);
    check_same_device(kOp, name, cache, "query", query);
    FASTLLM_CHECK(cache.dim() == 4 && cache.size(0) == query.size(0), kOp, name,
                  c10::str("have shape (", query.size(0), ", Hkv, S, D)"), cache.sizes());
    FASTLLM_CHECK(cache.stride(3) == 1 || cache.size(3) <= 1, kOp, name, "have a contiguous last dimension",
                  c10::str("strides ", cache.strides()));
  }
  FASTLLM_CHECK(k_cache.size(3) == query.size(3), kOp, "k_cache",
                c10::str("have query's head_dim (", query.size(3), ")"), k_cache.sizes());
  FASTLLM_CHECK(v_cache.size(1) == k_cache.size(1) && v_cache.size(2) == k_cache.size(2), kOp, "v_cache",
                c10::str("have k_cache's heads and capacity (", k_cache.sizes(), ")"), v_cache.sizes());
  const int64_t h = query.size(1), hkv = k_cache.size(1);
  FASTLLM_CHECK(h == hkv || (hkv > 0 && h % hkv == 0), kOp, "k_cache",
                c10::str("have a divisor of query's ", h, " heads"), k_cache.sizes());
}

Tensor check_lengths(const Tensor& lengths, const Tensor& query, int64_t capacity) {
  FASTLLM_CHECK_TYPE(lengths.scalar_type() == at::kLong, kOp, "lengths", "be int64", lengths.scalar_type());
  check_same_device(kOp, "lengths", lengths, "query", query);
  check_shape(kOp, "lengths", lengths, {query.size(0)});
  const Tensor l = lengths.contiguous();
  const int64_t* values = l.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < l.numel(); ++b)
    FASTLLM_CHECK(values[b] >= 0 && values[b] <= capacity, kOp, "lengths",
                  c10::str("be in [0, ", capacity, "], the capacity of the caches"), values[b], " at position ", b);
  return l;
}

Tensor check_slopes(const OptionalTensor& alibi_slopes, const Tensor& query) {
  if (!alibi_slopes) return Tensor();
  const int64_t b = query.size(0), h = query.size(1);
  FASTLLM_CHECK(alibi_slopes->sizes() == at::IntArrayRef({h}) || alibi_slopes->sizes() == at::IntArrayRef({b, h}), kOp,
                "alibi_slopes", c10::str("have shape (H) = [", h, "] or (B, H) = [", b, ", ", h, "]"),
                alibi_slopes->sizes());
  check_floating(kOp, "alibi_slopes", *alibi_slopes);
  check_same_device(kOp, "alibi_slopes", *alibi_slopes, "query", query);
  return alibi_slopes->to(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

template <typename T, typename P>
Heads<P> heads(P data, const Tensor& t) {
  return {data, t.stride(0), t.stride(2), t.stride(1)};
}

Tensor decode_attention_cpu(const Tensor& query, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                            std::optional<double> scale, std::optional<int64_t> window_left,
                            const OptionalTensor& alibi_slopes, std::optional<double> softcap) {
  check_caches(query, k_cache, v_cache);
  const Tensor l = check_lengths(lengths, query, k_cache.size(2)), slopes = check_slopes(alibi_slopes, query);
  FASTLLM_CHECK(!window_left || *window_left >= 0, kOp, "window_left", "be at least 0", *window_left);
  FASTLLM_CHECK(!softcap || *softcap > 0, kOp, "softcap", "be over 0", *softcap);
  const Tensor q = query.stride(3) == 1 || query.size(3) <= 1 ? query : query.contiguous();
  const int64_t b = q.size(0), h = q.size(1), tq = q.size(2), d = q.size(3), dv = v_cache.size(3);
  const Tensor output = at::empty({b, tq, h, dv}, q.options()).transpose(1, 2);
  dispatch_floating(q.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    DecodeAttention<T> a{};
    a.b = b, a.h = h, a.hkv = k_cache.size(1), a.tq = tq, a.d = d, a.dv = dv;
    a.query = heads<T>(q.const_data_ptr<T>(), q);
    a.key = heads<T>(k_cache.const_data_ptr<T>(), k_cache);
    a.value = heads<T>(v_cache.const_data_ptr<T>(), v_cache);
    a.lengths = l.const_data_ptr<int64_t>();
    a.left = std::min(window_left.value_or(k_cache.size(2)), k_cache.size(2));
    a.scale = static_cast<C>(scale.value_or(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, d)))));
    a.softcap = static_cast<C>(softcap.value_or(0.0));
    a.alibi_slopes = slopes.defined() ? slopes.const_data_ptr<C>() : nullptr;
    a.alibi_strides[0] = slopes.defined() && slopes.dim() == 2 ? h : 0;
    a.alibi_strides[1] = 1;
    decode_attention<T>(a, heads<T>(output.mutable_data_ptr<T>(), output));
  });
  return output;
}

Tensor decode_attention_autograd(const Tensor& query, const Tensor& k_cache, const Tensor& v_cache,
                                 const Tensor& lengths, std::optional<double> scale, std::optional<int64_t> window_left,
                                 const OptionalTensor& alibi_slopes, std::optional<double> softcap) {
  static auto op = find_op<decltype(decode_attention_cpu)>("fastllm::decode_attention");
  const std::pair<const char*, Tensor> tensors[] = {
      {"query", query}, {"k_cache", k_cache}, {"v_cache", v_cache}, {"alibi_slopes", or_undefined(alibi_slopes)}};
  for (const auto& [name, tensor] : tensors)
    FASTLLM_CHECK(!at::GradMode::is_enabled() || !tensor.defined() || !tensor.requires_grad(), kOp, name,
                  "not require a gradient: it is for inference (call it under torch.no_grad, or train with "
                  "scaled_dot_product_attention)",
                  "one that does");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(query, k_cache, v_cache, lengths, scale, window_left, alibi_slopes, softcap);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "decode_attention(Tensor query, Tensor k_cache, Tensor v_cache, Tensor lengths, float? scale, int? window_left, "
      "Tensor? alibi_slopes, float? softcap) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("decode_attention", decode_attention_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("decode_attention", decode_attention_autograd);
}

}  // namespace fastllm
