// fastllm::decode_attention on CUDA.
#include "ops/decode_attention.h"

#include "cuda/decode_attention.h"
#include "ops/cuda.h"

namespace fastllm {
namespace {

using View = cuda::DecodeAttentionParams::View;

View view(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

void check_limits(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  const std::pair<const char*, const Tensor&> caches[] = {{"k_cache", k_cache}, {"v_cache", v_cache}};
  for (const auto& [name, cache] : caches)
    FASTLLM_CHECK(cache.size(3) <= cuda::kDecodeMostColumns, op, name,
                  c10::str("have a head_dim of at most ", cuda::kDecodeMostColumns, " on CUDA"), cache.size(3));
  FASTLLM_CHECK(k_cache.size(2) <= cuda::kDecodeMostCapacity, op, "k_cache",
                c10::str("have a capacity of at most ", cuda::kDecodeMostCapacity, " on CUDA"), k_cache.size(2));
}

Tensor decode_attention_cuda(const Tensor& query, const Tensor& k_cache, const Tensor& v_cache, const Tensor& lengths,
                             std::optional<double> scale, std::optional<int64_t> window_left,
                             const OptionalTensor& alibi_slopes, std::optional<double> softcap) {
  const char* op = "decode_attention";
  const CudaGuard guard(query);
  const DecodeArguments checked =
      check_decode_attention(op, query, k_cache, v_cache, lengths, {scale, window_left, alibi_slopes, softcap});
  const cuda::DType dtype = cuda_dtype(op, "query", query);
  check_limits(op, k_cache, v_cache);
  const Tensor& q = checked.query;
  Tensor output = decode_output(q, v_cache);
  const auto floats = q.options().dtype(at::kFloat);
  cuda::DecodePartials partials = cuda::DecodePartials::of(k_cache.size(2), v_cache.size(3));
  const int64_t count = q.size(0) * q.size(1) * q.size(2) * partials.splits;
  Tensor statistics = at::empty({count, 2}, floats), values = at::empty({count, partials.row}, floats);
  partials.statistics = statistics.mutable_data_ptr<float>();
  partials.values = values.mutable_data_ptr<float>();
  const cuda::DecodeAttentionParams params{
      .dtype = dtype,
      .batch = q.size(0),
      .heads = q.size(1),
      .kv_heads = k_cache.size(1),
      .queries = q.size(2),
      .capacity = k_cache.size(2),
      .head_dim = q.size(3),
      .value_dim = v_cache.size(3),
      .query = view(q),
      .key = view(k_cache),
      .value = view(v_cache),
      .lengths = checked.lengths.const_data_ptr<int64_t>(),
      .left = checked.left,
      .scale = static_cast<float>(checked.scale),
      .softcap = static_cast<float>(checked.softcap),
      .alibi_slopes = checked.slopes.defined() ? checked.slopes.const_data_ptr<float>() : nullptr,
      .alibi_stride = checked.slopes_stride(),
      .partials = partials,
      .output = output.mutable_data_ptr()};
  check_launch(op, cuda::decode_attention(params, current_stream()));
  return output;
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("decode_attention", decode_attention_cuda);
}

}  // namespace fastllm
