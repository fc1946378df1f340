// fastllm::scaled_dot_product_attention, fastllm::attention_packed and their backward.
#include "ops/attention.h"

#include <ATen/ops/full.h>
#include <ATen/ops/where.h>

#include <vector>

#include "cpu/attention.h"

namespace fastllm {
namespace {

template <typename T, typename P>
Heads<P> heads(const Tensor& t) {
  P data = nullptr;
  if constexpr (std::is_const_v<std::remove_pointer_t<P>>)
    data = t.const_data_ptr<T>();
  else
    data = t.mutable_data_ptr<T>();
  return {data, t.stride(0), t.stride(1), t.stride(2)};
}

// The mask as additive scores in the compute type, with the strides of (B, H, Tq, Tk).
struct Mask {
  Tensor values;
  std::array<int64_t, 4> strides{};
};

Mask prepare_mask(const Tensor& m, at::ScalarType computing) {
  Mask mask;
  if (m.scalar_type() == at::kBool) {
    const auto options = m.options().dtype(computing);
    const double never = -std::numeric_limits<double>::infinity();
    mask.values = at::where(m, at::full({}, 0.0, options), at::full({}, never, options)).contiguous();
  } else {
    mask.values = m.to(computing).contiguous();
  }
  mask.strides = broadcast_strides(mask.values);
  return mask;
}

// For each token the run of its neighbours with the same id; (B, T).
std::vector<Run> prepare_runs(const char* op, const Tensor& segment_ids) {
  const int64_t b = segment_ids.size(0), t = segment_ids.size(1);
  const Tensor contiguous = segment_ids.to(at::kLong).contiguous();
  const int64_t* ids = contiguous.const_data_ptr<int64_t>();
  std::vector<Run> runs(b * t);
  Run* row_runs = runs.data();
  for (int64_t row = 0; row < b; ++row, ids += t, row_runs += t) {
    for (int64_t begin = 0, end = 1; begin < t; begin = end++) {
      while (end < t && ids[end] == ids[begin]) ++end;
      FASTLLM_CHECK(end == t || ids[end] > ids[begin], op, "segment_ids", "be non-decreasing along a row",
                    c10::str(ids[end - 1], " before ", ids[end], " at [", row, ", ", end, "]"));
      std::fill(row_runs + begin, row_runs + end, Run{begin, end});
    }
  }
  return runs;
}

// The optional tensors as the kernels read them.
struct Prepared {
  std::optional<DropoutParams> dropout;
  Mask mask;
  Tensor lengths, slopes;
  std::vector<Run> runs;

  Prepared(const char* op, const Operands& o, const AttentionOptions& options)
      : dropout(dropout_params(op, options.dropout_p, options.rng_state, o.query, "dropout_p")) {
    check_options(op, o, options);
    const at::ScalarType computing = compute_type(o.query);
    if (options.attn_mask) mask = prepare_mask(*options.attn_mask, computing);
    if (options.key_lengths) {
      lengths = options.key_lengths->to(at::kLong).contiguous();
      check_lengths(op, "key_lengths", lengths, o.key.size(1), "the number of keys");
    }
    if (options.alibi_slopes) slopes = options.alibi_slopes->to(computing).contiguous();
    if (options.segment_ids) runs = prepare_runs(op, *options.segment_ids);
  }

  template <typename T>
  Attention<T> describe(const Operands& o, const AttentionOptions& options) const {
    using C = Compute<T>;
    Attention<T> a{};
    a.b = o.query.size(0), a.tq = o.query.size(1), a.h = o.query.size(2), a.d = o.query.size(3);
    a.tk = o.key.size(1), a.hkv = o.key.size(2), a.dv = o.value.size(3);
    a.query = heads<T, const T*>(o.query), a.key = heads<T, const T*>(o.key), a.value = heads<T, const T*>(o.value);
    const Reach reach(o, options);
    a.shift = reach.shift, a.ends = options.after_lengths ? lengths.const_data_ptr<int64_t>() : nullptr;
    a.left = reach.left, a.right = reach.right;
    a.scale = static_cast<C>(attention_scale(o, options));
    a.key_lengths = lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr;
    a.runs = options.segment_ids ? runs.data() : nullptr;
    a.mask = mask.values.defined() ? mask.values.const_data_ptr<C>() : nullptr;
    std::copy(mask.strides.begin(), mask.strides.end(), a.mask_strides);
    a.alibi_slopes = slopes.defined() ? slopes.const_data_ptr<C>() : nullptr;
    a.alibi_strides[0] = slopes.defined() && slopes.dim() == 2 ? a.h : 0;
    a.alibi_strides[1] = 1;
    a.softcap = static_cast<C>(options.softcap.value_or(0.0));
    a.dropout = dropout ? &*dropout : nullptr;
    return a;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The CPU's kernels
// ---------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> forward(const char* op, const Operands& o, const AttentionOptions& options) {
  const Prepared prepared(op, o, options);
  const int64_t b = o.query.size(0), tq = o.query.size(1), h = o.query.size(2);
  Tensor output = at::empty({b, tq, h, o.value.size(3)}, o.query.options());
  Tensor statistics = empty_statistics({b, h, tq}, o.query);
  dispatch_floating(o.query.scalar_type(), [&]<typename T>() {
    attention_forward<T>(prepared.describe<T>(o, options), heads<T, T*>(output),
                         mutable_statistics<Compute<T>>(statistics));
  });
  return {output, statistics};
}

// Writes into `grads`, views like the operands; returns the mask's gradient, undefined if it is not wanted.
Tensor backward(const char* op, const Tensor& grad_output, const Operands& o, const Tensor& output,
                const Tensor& statistics, const AttentionOptions& options, bool need_mask, const Operands& grads) {
  const Prepared prepared(op, o, options);
  const Tensor go = unit_last_stride(grad_output), out = unit_last_stride(output), sums = statistics.contiguous();
  Tensor grad_mask = need_mask ? at::zeros_like(prepared.mask.values) : Tensor();
  dispatch_floating(o.query.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    Tensor residual;
    if (needs_residual(o, need_mask)) {
      residual = at::empty(out.sizes(), out.options());
      Attention<T> again = prepared.describe<T>(o, options);
      again.minus = heads<T, const T*>(out);
      Tensor same = at::empty_like(sums);
      attention_forward<T>(again, heads<T, T*>(residual), mutable_statistics<C>(same));
    }
    const AttentionGradients<T> g{heads<T, const T*>(go),
                                  heads<T, const T*>(out),
                                  residual.defined() ? heads<T, const T*>(residual) : Heads<const T*>{},
                                  const_statistics<C>(sums),
                                  heads<T, T*>(grads.query),
                                  heads<T, T*>(grads.key),
                                  heads<T, T*>(grads.value),
                                  need_mask ? grad_mask.mutable_data_ptr<C>() : nullptr};
    attention_backward<T>(prepared.describe<T>(o, options), g);
  });
  return need_mask ? grad_mask.to(options.attn_mask->scalar_type()) : grad_mask;
}

using OnCpu = AttentionOps<forward, backward>;

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast: what follows the operands and the mask is passed on as it is
// ---------------------------------------------------------------------------------------------------------------------

template <typename... Values>
c10::IValue pack(const Values&... values) {
  c10::impl::GenericList list(c10::AnyType::get());
  list.reserve(sizeof...(values));
  (list.push_back(c10::IValue(values)), ...);
  return list;
}

// Calls body with the values that pack was given; theirs are the Types.
template <typename... Types, typename Body>
auto unpacked(const c10::IValue& packed, const Body& body) {
  const auto list = packed.toListRef();
  return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return body(list[kIndex].template to<std::decay_t<Types>>()...);
  }(std::index_sequence_for<Types...>{});
}

variable_list with_undefined(variable_list gradients, size_t more) {
  gradients.resize(gradients.size() + more);
  return gradients;
}

template <typename Signature>
struct Sdpa;

template <typename Result, typename... Rest>
struct Sdpa<Result(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, Rest...)>
    : torch::autograd::Function<
          Sdpa<Result(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, Rest...)>> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& key, const Tensor& value,
                               const OptionalTensor& attn_mask, Rest... rest) {
    ctx->saved_data["need_mask"] = wants_gradient(attn_mask);
    ctx->saved_data["rest"] = pack(rest...);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, statistics] =
        find_op<"scaled_dot_product_attention", decltype(OnCpu::sdpa)>().call(query, key, value, attn_mask, rest...);
    ctx->save_for_backward({query, key, value, output, statistics, or_undefined(attn_mask)});
    ctx->mark_non_differentiable({statistics});
    return {output, statistics};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list s = ctx->get_saved_variables();
    const auto [dq, dk, dv, dmask] = unpacked<Rest...>(ctx->saved_data["rest"], [&](const auto&... rest) {
      return find_op<"scaled_dot_product_attention_backward", decltype(OnCpu::sdpa_backward)>().call(
          grads[0], s[0], s[1], s[2], s[3], s[4], optional(s[5]), rest..., ctx->saved_data["need_mask"].toBool());
    });
    return first_order_only("scaled_dot_product_attention", with_undefined({dq, dk, dv, dmask}, sizeof...(Rest)));
  }
};

template <typename Signature>
struct Packed;

template <typename Result, typename... Rest>
struct Packed<Result(const Tensor&, const OptionalTensor&, Rest...)>
    : torch::autograd::Function<Packed<Result(const Tensor&, const OptionalTensor&, Rest...)>> {
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv, const OptionalTensor& attn_mask, Rest... rest) {
    ctx->saved_data["need_mask"] = wants_gradient(attn_mask);
    ctx->saved_data["rest"] = pack(rest...);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, statistics] =
        find_op<"attention_packed", decltype(OnCpu::packed)>().call(qkv, attn_mask, rest...);
    ctx->save_for_backward({qkv, output, statistics, or_undefined(attn_mask)});
    ctx->mark_non_differentiable({statistics});
    return {output, statistics};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list s = ctx->get_saved_variables();
    const auto [dqkv, dmask] = unpacked<Rest...>(ctx->saved_data["rest"], [&](const auto&... rest) {
      return find_op<"attention_packed_backward", decltype(OnCpu::packed_backward)>().call(
          grads[0], s[0], s[1], s[2], optional(s[3]), rest..., ctx->saved_data["need_mask"].toBool());
    });
    return first_order_only("attention_packed", with_undefined({dqkv, dmask}, sizeof...(Rest)));
  }
};

// The operands are cast; a mask is added to float32 scores as it is.
template <c10::DeviceType kDevice>
using AutocastSdpa = AutocastKernel<"scaled_dot_product_attention", decltype(OnCpu::sdpa), kDevice, 3>;
template <c10::DeviceType kDevice>
using AutocastPacked = AutocastKernel<"attention_packed", decltype(OnCpu::packed), kDevice, 1>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  const std::string sdpa_options =
      "Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, bool enable_gqa, Tensor? key_lengths, "
      "Tensor? segment_ids, bool bottom_right, bool after_lengths, int? window_left, int? window_right, Tensor? "
      "alibi_slopes, "
      "float? softcap, Tensor? rng_state";
  const std::string packed_options =
      "Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, Tensor? key_lengths, Tensor? segment_ids, "
      "int? window_left, int? window_right, Tensor? alibi_slopes, float? softcap, Tensor? rng_state, int? num_heads";
  const std::string sdpa = "(Tensor query, Tensor key, Tensor value, " + sdpa_options + ") -> (Tensor, Tensor)";
  const std::string sdpa_backward =
      "(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor statistics, " + sdpa_options +
      ", bool need_mask) -> (Tensor, Tensor, Tensor, Tensor)";
  const std::string packed = "(Tensor qkv, " + packed_options + ") -> (Tensor, Tensor)";
  const std::string packed_backward = "(Tensor grad_output, Tensor qkv, Tensor output, Tensor statistics, " +
                                      packed_options + ", bool need_mask) -> (Tensor, Tensor)";
  m.def(("scaled_dot_product_attention" + sdpa).c_str());
  m.def(("scaled_dot_product_attention_backward" + sdpa_backward).c_str());
  m.def(("attention_packed" + packed).c_str());
  m.def(("attention_packed_backward" + packed_backward).c_str());
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  OnCpu::add_to(m);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("scaled_dot_product_attention", AutogradKernel<Sdpa<decltype(OnCpu::sdpa)>, decltype(OnCpu::sdpa)>::call);
  m.impl("attention_packed", AutogradKernel<Packed<decltype(OnCpu::packed)>, decltype(OnCpu::packed)>::call);
}

TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("scaled_dot_product_attention", AutocastSdpa<c10::DeviceType::CPU>::call);
  m.impl("attention_packed", AutocastPacked<c10::DeviceType::CPU>::call);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("scaled_dot_product_attention", AutocastSdpa<c10::DeviceType::CUDA>::call);
  m.impl("attention_packed", AutocastPacked<c10::DeviceType::CUDA>::call);
}

}  // namespace fastllm
