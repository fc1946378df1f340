// fastllm::scaled_dot_product_attention, fastllm::attention_packed and their backward on CUDA.
#include "ops/attention.h"

#include <ATen/ops/searchsorted.h>

#include "cuda/attention.h"
#include "ops/cuda.h"
#include "ops/cuda/dropout_state.h"

namespace fastllm {
namespace {

// A (B, T, H, D) view as the kernels take it.
template <typename Pointer>
cuda::HeadsOf<Pointer> heads(const Tensor& t, Pointer data) {
  constexpr int64_t kWide = 16;  // bytes
  const int64_t size = t.element_size();
  bool wide = reinterpret_cast<uintptr_t>(data) % kWide == 0 && t.size(3) * size % kWide == 0;
  for (int64_t dim = 0; dim < 3; ++dim) wide = wide && (t.size(dim) == 1 || t.stride(dim) * size % kWide == 0);
  return {data, t.stride(0), t.stride(1), t.stride(2), wide};
}
cuda::Heads heads(const Tensor& t) {
  return heads(t, t.const_data_ptr());
}
cuda::MutableHeads mutable_heads(const Tensor& t) {
  return heads(t, t.mutable_data_ptr());
}

// A mask in another dtype than the kernels read is converted; a narrow one is read as it is.
Tensor prepare_mask(const Tensor& mask, const Tensor& query) {
  const bool as_it_is = mask.scalar_type() == at::kBool || mask.scalar_type() == query.scalar_type();
  return as_it_is ? mask : mask.to(at::kFloat);
}

cuda::AttentionMask describe_mask(const Tensor& mask) {
  using Kind = cuda::AttentionMask::Kind;
  const auto dtype = mask.scalar_type();
  cuda::AttentionMask described{.kind = dtype == at::kBool    ? Kind::kBool
                                        : dtype == at::kFloat ? Kind::kFloat32
                                                              : Kind::kNarrow,
                                .data = mask.const_data_ptr()};
  const auto strides = broadcast_strides(mask);
  std::copy(strides.begin(), strides.end(), described.strides);
  return described;
}

void check_limits(const char* op, const Operands& o) {
  using Limits = cuda::AttentionParams;
  for (const auto& [name, tensor] : {std::pair("query", o.query), std::pair("key", o.key)})
    FASTLLM_CHECK(tensor.size(1) <= Limits::kMostTokens, op, name,
                  c10::str("have at most ", Limits::kMostTokens, " tokens on CUDA"), tensor.size(1));
  for (const auto& [name, tensor] : {std::pair("query", o.query), std::pair("value", o.value)})
    FASTLLM_CHECK(tensor.size(3) <= Limits::kMostChannels, op, name,
                  c10::str("have a head_dim of at most ", Limits::kMostChannels, " on CUDA"), tensor.size(3));
}

// The kernels' parameters, and the tensors they point to.
struct Prepared {
  DropoutState dropout;
  Tensor mask, lengths, slopes, run_begins, run_ends;
  cuda::AttentionParams params{};

  Prepared(const char* op, const Operands& o, const AttentionOptions& options)
      : dropout(op, options.dropout_p, options.rng_state, o.query) {
    check_limits(op, o);
    check_options(op, o, options);
    cuda::AttentionParams& p = params;
    p.dtype = cuda_dtype(op, "query", o.query);
    const auto size = [](const Tensor& t, int64_t dim) { return static_cast<int>(t.size(dim)); };
    p.batch = size(o.query, 0), p.queries = size(o.query, 1), p.heads = size(o.query, 2), p.channels = size(o.query, 3);
    p.keys = size(o.key, 1), p.kv_heads = size(o.key, 2), p.value_channels = size(o.value, 3);
    p.query = heads(o.query), p.key = heads(o.key), p.value = heads(o.value);
    const Reach reach(o, options);
    p.shift = static_cast<int>(reach.shift), p.after_lengths = options.after_lengths;
    p.left = static_cast<int>(reach.left), p.right = static_cast<int>(reach.right);
    p.scale = static_cast<float>(attention_scale(o, options));
    p.softcap = static_cast<float>(options.softcap.value_or(0.0));
    p.dropout = dropout.dropout;
    if (options.key_lengths) {
      lengths = options.key_lengths->to(at::kLong).contiguous();
      p.key_lengths = lengths.const_data_ptr<int64_t>();
    }
    if (options.segment_ids) {  // sorted along a row, so a token's neighbours are found by bisection
      const Tensor ids = options.segment_ids->contiguous();
      run_begins = at::searchsorted(ids, ids);
      run_ends = at::searchsorted(ids, ids, /*out_int32=*/false, /*right=*/true);
      p.run_begins = run_begins.const_data_ptr<int64_t>();
      p.run_ends = run_ends.const_data_ptr<int64_t>();
    }
    if (options.attn_mask) {
      mask = prepare_mask(*options.attn_mask, o.query);
      p.mask = describe_mask(mask);
    }
    if (options.alibi_slopes) {
      slopes = options.alibi_slopes->to(at::kFloat).contiguous();
      p.alibi_slopes = slopes.const_data_ptr<float>();
      p.alibi_strides[0] = slopes.dim() == 2 ? p.heads : 0;
      p.alibi_strides[1] = 1;
    }
  }
};

std::tuple<Tensor, Tensor> forward(const char* op, const Operands& o, const AttentionOptions& options) {
  const CudaGuard guard(o.query);
  const Prepared prepared(op, o, options);
  const int64_t b = o.query.size(0), tq = o.query.size(1), h = o.query.size(2);
  Tensor output = at::empty({b, tq, h, o.value.size(3)}, o.query.options());
  Tensor statistics = empty_statistics({b, h, tq}, o.query);
  check_launch(op, cuda::attention_forward(prepared.params, mutable_heads(output),
                                           mutable_statistics<float>(statistics), current_stream()));
  return {output, statistics};
}

Tensor backward(const char* op, const Tensor& grad_output, const Operands& o, const Tensor& output,
                const Tensor& statistics, const AttentionOptions& options, bool need_mask, const Operands& grads) {
  const CudaGuard guard(o.query);
  const Prepared prepared(op, o, options);
  const Tensor go = unit_last_stride(grad_output), out = unit_last_stride(output), sums = statistics.contiguous();
  static_assert(sizeof(cuda::QueryRow) == 4 * sizeof(float));
  Tensor rows = at::empty({sums.size(0), sums.size(1), sums.size(2), 4}, sums.options()), grad_mask;
  cuda::AttentionGradients g{.grad_output = heads(go),
                             .output = heads(out),
                             .statistics = const_statistics<float>(sums),
                             .rows = static_cast<cuda::QueryRow*>(rows.mutable_data_ptr()),
                             .grad_query = mutable_heads(grads.query),
                             .grad_key = mutable_heads(grads.key),
                             .grad_value = mutable_heads(grads.value)};
  Tensor residual_delta;
  if (needs_residual(o, need_mask)) {
    const Tensor residual = at::empty(out.sizes(), out.options());
    cuda::AttentionParams again = prepared.params;
    again.residual = true;
    Tensor same = at::empty_like(sums);
    check_launch(
        op, cuda::attention_forward(again, mutable_heads(residual), mutable_statistics<float>(same), current_stream()));
    residual_delta = go.to(at::kFloat).mul(residual).sum(-1).transpose(1, 2).contiguous();
    g.residual_delta = residual_delta.const_data_ptr<float>();
  }
  if (need_mask) {
    grad_mask = at::zeros(prepared.mask.sizes(), sums.options());  // kernels write none where there is no score
    g.grad_mask = grad_mask.mutable_data_ptr<float>();
    const auto strides = broadcast_strides(grad_mask);
    std::copy(strides.begin(), strides.end(), g.grad_mask_strides);
  }
  check_launch(op, cuda::attention_backward(prepared.params, g, current_stream()));
  return need_mask ? grad_mask.to(options.attn_mask->scalar_type()) : grad_mask;
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  AttentionOps<forward, backward>::add_to(m);
}

}  // namespace fastllm
