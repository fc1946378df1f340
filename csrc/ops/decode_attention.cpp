// fastllm::decode_attention. Inference alone: no gradient, and an error where one is asked for.
#include "ops/decode_attention.h"

#include "cpu/decode_attention.h"

namespace fastllm {
namespace {

constexpr const char* kOp = "decode_attention";

template <typename T, typename P>
Heads<P> heads(P data, const Tensor& t) {
  return {data, t.stride(0), t.stride(2), t.stride(1)};
}

Tensor decode_attention_cpu(const Tensor& query, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                            std::optional<double> scale, std::optional<int64_t> window_left,
                            const OptionalTensor& alibi_slopes, std::optional<double> softcap) {
  const DecodeArguments checked =
      check_decode_attention(kOp, query, k_cache, v_cache, lengths, {scale, window_left, alibi_slopes, softcap});
  check_lengths(kOp, "lengths", checked.lengths, k_cache.size(2), "the capacity of the caches");
  const Tensor &q = checked.query, &slopes = checked.slopes;
  const Tensor output = decode_output(q, v_cache);
  dispatch_floating(q.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    DecodeAttention<T> a{};
    a.b = q.size(0), a.h = q.size(1), a.hkv = k_cache.size(1), a.tq = q.size(2);
    a.d = q.size(3), a.dv = v_cache.size(3);
    a.query = heads<T>(q.const_data_ptr<T>(), q);
    a.key = heads<T>(k_cache.const_data_ptr<T>(), k_cache);
    a.value = heads<T>(v_cache.const_data_ptr<T>(), v_cache);
    a.lengths = checked.lengths.const_data_ptr<int64_t>();
    a.left = checked.left;
    a.scale = static_cast<C>(checked.scale);
    a.softcap = static_cast<C>(checked.softcap);
    a.alibi_slopes = slopes.defined() ? slopes.const_data_ptr<C>() : nullptr;
    a.alibi_strides[0] = checked.slopes_stride();
    a.alibi_strides[1] = 1;
    decode_attention<T>(a, heads<T>(output.mutable_data_ptr<T>(), output));
  });
  return output;
}

Tensor decode_attention_autograd(const Tensor& query, const Tensor& k_cache, const Tensor& v_cache,
                                 const Tensor& lengths, std::optional<double> scale, std::optional<int64_t> window_left,
                                 const OptionalTensor& alibi_slopes, std::optional<double> softcap) {
  const std::pair<const char*, Tensor> tensors[] = {
      {"query", query}, {"k_cache", k_cache}, {"v_cache", v_cache}, {"alibi_slopes", or_undefined(alibi_slopes)}};
  for (const auto& [name, tensor] : tensors)
    FASTLLM_CHECK(!at::GradMode::is_enabled() || !wants_gradient(tensor), kOp, name,
                  "not require a gradient: it is for inference (call it under torch.no_grad, or train with "
                  "scaled_dot_product_attention)",
                  "one that does");
  at::AutoDispatchBelowADInplaceOrView guard;
  return find_op<"decode_attention", decltype(decode_attention_cpu)>().call(query, k_cache, v_cache, lengths, scale,
                                                                            window_left, alibi_slopes, softcap);
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
