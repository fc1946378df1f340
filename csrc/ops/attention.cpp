// fastllm::scaled_dot_product_attention, fastllm::attention_packed and their backward.
#include "cpu/attention.h"

#include <ATen/ops/full.h>
#include <ATen/ops/where.h>

#include <array>
#include <cmath>
#include <vector>

#include "ops/dropout.h"

namespace fastllm {
namespace {

// B batch, H heads of queries, Hkv of keys and values, Tq and Tk tokens, D head_dim

struct Options {
  const OptionalTensor& attn_mask;
  double dropout_p;
  bool is_causal;
  std::optional<double> scale;
  const OptionalTensor& key_lengths;
  const OptionalTensor& segment_ids;
  bool bottom_right;
  std::optional<int64_t> window_left, window_right;
  const OptionalTensor& alibi_slopes;
  std::optional<double> softcap;
  const OptionalTensor& rng_state;
};

at::ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Queries, keys and values as (B, T, H, D) views with a contiguous last dimension.
struct Operands {
  Tensor query, key, value;
};

Tensor unit_last_stride(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

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

Mask prepare_mask(const char* op, const OptionalTensor& attn_mask, const Operands& o) {
  Mask mask;
  if (!attn_mask) return mask;
  const Tensor& m = *attn_mask;
  FASTLLM_CHECK_TYPE(m.scalar_type() == at::kBool || is_kernel_dtype(m.scalar_type()), op, "attn_mask",
                     "be bool or floating", m.scalar_type());
  check_same_device(op, "attn_mask", m, "query", o.query);
  const std::array<int64_t, 4> full{o.query.size(0), o.query.size(2), o.query.size(1), o.key.size(1)};
  bool fits = m.dim() <= 4;
  for (int64_t i = 0; fits && i < m.dim(); ++i) {
    const int64_t size = m.size(m.dim() - 1 - i);
    fits = size == 1 || size == full[3 - i];
  }
  FASTLLM_CHECK(fits, op, "attn_mask", c10::str("broadcast to (B, H, Tq, Tk) = ", at::IntArrayRef(full)), m.sizes());
  const auto options = m.options().dtype(compute_type(o.query));
  if (m.scalar_type() == at::kBool) {
    const double never = -std::numeric_limits<double>::infinity();
    mask.values = at::where(m, at::full({}, 0.0, options), at::full({}, never, options)).contiguous();
  } else {
    mask.values = m.to(compute_type(o.query)).contiguous();
  }
  for (int64_t i = 0; i < m.dim(); ++i) {
    const int64_t dim = m.dim() - 1 - i;
    mask.strides[3 - i] = m.size(dim) == 1 ? 0 : mask.values.stride(dim);
  }
  return mask;
}

Tensor prepare_lengths(const char* op, const OptionalTensor& key_lengths, const Tensor& query) {
  if (!key_lengths) return Tensor();
  FASTLLM_CHECK_TYPE(key_lengths->scalar_type() == at::kLong || key_lengths->scalar_type() == at::kInt, op,
                     "key_lengths", "be int64 or int32", key_lengths->scalar_type());
  check_shape(op, "key_lengths", *key_lengths, {query.size(0)});
  check_same_device(op, "key_lengths", *key_lengths, "query", query);
  return key_lengths->to(at::kLong).contiguous();
}

// For each token the run of its neighbours with the same id; (B, T).
std::vector<Run> prepare_runs(const char* op, const OptionalTensor& segment_ids, const Operands& o) {
  if (!segment_ids) return {};
  FASTLLM_CHECK_TYPE(segment_ids->scalar_type() == at::kLong || segment_ids->scalar_type() == at::kInt, op,
                     "segment_ids", "be int64 or int32", segment_ids->scalar_type());
  const int64_t b = o.query.size(0), t = o.query.size(1);
  FASTLLM_CHECK(o.key.size(1) == t, op, "segment_ids", "be given for self-attention, with as many keys as queries",
                c10::str(t, " queries and ", o.key.size(1), " keys"));
  check_shape(op, "segment_ids", *segment_ids, {b, t});
  check_same_device(op, "segment_ids", *segment_ids, "query", o.query);
  const Tensor contiguous = segment_ids->to(at::kLong).contiguous();
  const int64_t* ids = contiguous.const_data_ptr<int64_t>();
  std::vector<Run> runs(b * t);
  Run* row_runs = runs.data();
  for (int64_t row = 0; row < b; ++row, ids += t, row_runs += t) {
    for (int64_t begin = 0, end = 1; begin < t; begin = end++) {
      while (end < t && ids[end] == ids[begin]) ++end;
      FASTLLM_CHECK(end == t || ids[end] > ids[begin], op, "segment_ids", "not fall along a row",
                    c10::str(ids[end - 1], " before ", ids[end], " at [", row, ", ", end, "]"));
      std::fill(row_runs + begin, row_runs + end, Run{begin, end});
    }
  }
  return runs;
}

Tensor prepare_slopes(const char* op, const OptionalTensor& alibi_slopes, const Operands& o) {
  if (!alibi_slopes) return Tensor();
  const int64_t b = o.query.size(0), h = o.query.size(2);
  FASTLLM_CHECK(alibi_slopes->sizes() == at::IntArrayRef({h}) || alibi_slopes->sizes() == at::IntArrayRef({b, h}), op,
                "alibi_slopes", c10::str("have shape (H) = [", h, "] or (B, H) = [", b, ", ", h, "]"),
                alibi_slopes->sizes());
  FASTLLM_CHECK_TYPE(is_kernel_dtype(alibi_slopes->scalar_type()), op, "alibi_slopes", "be floating",
                     alibi_slopes->scalar_type());
  check_same_device(op, "alibi_slopes", *alibi_slopes, "query", o.query);
  FASTLLM_CHECK(!alibi_slopes->requires_grad(), op, "alibi_slopes",
                "not require a gradient (give a learned bias as attn_mask)", "one that does");
  return alibi_slopes->to(compute_type(o.query)).contiguous();
}

// The optional tensors as the kernels read them.
struct Prepared {
  std::optional<DropoutParams> dropout;
  Mask mask;
  Tensor lengths, slopes;
  std::vector<Run> runs;

  Prepared(const char* op, const Operands& o, const Options& options)
      : dropout(dropout_params(op, options.dropout_p, options.rng_state, o.query, "dropout_p")),
        mask(prepare_mask(op, options.attn_mask, o)),
        lengths(prepare_lengths(op, options.key_lengths, o.query)),
        slopes(prepare_slopes(op, options.alibi_slopes, o)),
        runs(prepare_runs(op, options.segment_ids, o)) {
    FASTLLM_CHECK(!options.softcap || *options.softcap > 0, op, "softcap", "be over 0", *options.softcap);
    const std::pair<const char*, std::optional<int64_t>> sides[] = {{"window_left", options.window_left},
                                                                    {"window_right", options.window_right}};
    for (const auto& [name, side] : sides) FASTLLM_CHECK(!side || *side >= 0, op, name, "be at least 0", *side);
  }

  template <typename T>
  Attention<T> describe(const Operands& o, const Options& options) const {
    using C = Compute<T>;
    Attention<T> a{};
    a.b = o.query.size(0), a.tq = o.query.size(1), a.h = o.query.size(2), a.d = o.query.size(3);
    a.tk = o.key.size(1), a.hkv = o.key.size(2), a.dv = o.value.size(3);
    a.query = heads<T, const T*>(o.query), a.key = heads<T, const T*>(o.key), a.value = heads<T, const T*>(o.value);
    a.scale = static_cast<C>(options.scale.value_or(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, a.d)))));
    a.shift = options.bottom_right ? a.tk - a.tq : 0;
    const int64_t everything = a.tq + a.tk;  // more than any query's distance to any key
    a.left = std::min(options.window_left.value_or(everything), everything);
    a.right = options.is_causal ? 0 : std::min(options.window_right.value_or(everything), everything);
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

void check_operands(const char* op, const Tensor& query, const Tensor& key, const Tensor& value, bool enable_gqa) {
  check_floating(op, "query", query);
  FASTLLM_CHECK(query.dim() == 4, op, "query", "have shape (B, H, T, D)", query.sizes());
  const std::pair<const char*, const Tensor&> others[] = {{"key", key}, {"value", value}};
  for (const auto& [name, tensor] : others) {
    check_same_dtype(op, name, tensor, "query", query);
    check_same_device(op, name, tensor, "query", query);
    FASTLLM_CHECK(tensor.dim() == 4 && tensor.size(0) == query.size(0), op, name,
                  c10::str("have shape (", query.size(0), ", H, T, D)"), tensor.sizes());
  }
  FASTLLM_CHECK(key.size(3) == query.size(3), op, "key", c10::str("have query's head_dim (", query.size(3), ")"),
                key.sizes());
  FASTLLM_CHECK(value.size(1) == key.size(1) && value.size(2) == key.size(2), op, "value",
                c10::str("have key's heads and tokens (", key.sizes(), ")"), value.sizes());
  const int64_t h = query.size(1), hkv = key.size(1);
  FASTLLM_CHECK(h == hkv || (enable_gqa && hkv > 0 && h % hkv == 0), op, "key",
                c10::str("have query's ", h, " heads (or with enable_gqa a divisor of them)"), key.sizes());
}

// ---------------------------------------------------------------------------------------------------------------------
// Both ops, on (B, T, H, D) views
// ---------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> forward(const char* op, const Operands& o, const Options& options) {
  const Prepared prepared(op, o, options);
  const int64_t b = o.query.size(0), tq = o.query.size(1), h = o.query.size(2);
  Tensor output = at::empty({b, tq, h, o.value.size(3)}, o.query.options());
  Tensor logsumexp = at::empty({b, h, tq}, o.query.options().dtype(compute_type(o.query)));
  dispatch_floating(o.query.scalar_type(), [&]<typename T>() {
    attention_forward<T>(prepared.describe<T>(o, options), heads<T, T*>(output),
                         logsumexp.mutable_data_ptr<Compute<T>>());
  });
  return {output, logsumexp};
}

// Writes into `grads`, views like the operands; returns the mask's gradient, undefined if it is not wanted.
Tensor backward(const char* op, const Tensor& grad_output, const Operands& o, const Tensor& output,
                const Tensor& logsumexp, const Options& options, bool need_mask, const Operands& grads) {
  const Prepared prepared(op, o, options);
  const Tensor go = unit_last_stride(grad_output), out = unit_last_stride(output), lse = logsumexp.contiguous();
  Tensor grad_mask = need_mask ? at::zeros_like(prepared.mask.values) : Tensor();
  dispatch_floating(o.query.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    const AttentionGradients<T> g{heads<T, const T*>(go),
                                  heads<T, const T*>(out),
                                  lse.const_data_ptr<C>(),
                                  heads<T, T*>(grads.query),
                                  heads<T, T*>(grads.key),
                                  heads<T, T*>(grads.value),
                                  need_mask ? grad_mask.mutable_data_ptr<C>() : nullptr};
    attention_backward<T>(prepared.describe<T>(o, options), g);
  });
  return need_mask ? grad_mask.to(options.attn_mask->scalar_type()) : grad_mask;
}

Operands tokens_first(const Tensor& query, const Tensor& key, const Tensor& value) {
  return {unit_last_stride(query).transpose(1, 2), unit_last_stride(key).transpose(1, 2),
          unit_last_stride(value).transpose(1, 2)};
}

std::tuple<Tensor, Tensor> sdpa_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
                                    std::optional<double> scale, bool enable_gqa, const OptionalTensor& key_lengths,
                                    const OptionalTensor& segment_ids, bool bottom_right,
                                    std::optional<int64_t> window_left, std::optional<int64_t> window_right,
                                    const OptionalTensor& alibi_slopes, std::optional<double> softcap,
                                    const OptionalTensor& rng_state) {
  const char* op = "scaled_dot_product_attention";
  check_operands(op, query, key, value, enable_gqa);
  const Options options{attn_mask,    dropout_p,   is_causal,    scale,        key_lengths, segment_ids,
                        bottom_right, window_left, window_right, alibi_slopes, softcap,     rng_state};
  const auto [output, logsumexp] = forward(op, tokens_first(query, key, value), options);
  return {output.transpose(1, 2), logsumexp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sdpa_backward_cpu(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& output,
    const Tensor& logsumexp, const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
    std::optional<double> scale, bool enable_gqa, const OptionalTensor& key_lengths, const OptionalTensor& segment_ids,
    bool bottom_right, std::optional<int64_t> window_left, std::optional<int64_t> window_right,
    const OptionalTensor& alibi_slopes, std::optional<double> softcap, const OptionalTensor& rng_state,
    bool need_mask) {
  const char* op = "scaled_dot_product_attention_backward";
  check_operands(op, query, key, value, enable_gqa);
  check_same_shape(op, "grad_output", grad_output, "output", output);
  const Operands o = tokens_first(query, key, value);
  const auto like = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
  const Operands grads{like(o.query), like(o.key), like(o.value)};
  const Options options{attn_mask,    dropout_p,   is_causal,    scale,        key_lengths, segment_ids,
                        bottom_right, window_left, window_right, alibi_slopes, softcap,     rng_state};
  const Tensor grad_mask =
      backward(op, grad_output.transpose(1, 2), o, output.transpose(1, 2), logsumexp, options, need_mask, grads);
  return {grads.query.transpose(1, 2), grads.key.transpose(1, 2), grads.value.transpose(1, 2), grad_mask};
}

Operands unpack(const char* op, const Tensor& qkv) {
  check_floating(op, "qkv", qkv);
  FASTLLM_CHECK(qkv.dim() == 5 && qkv.size(2) == 3, op, "qkv", "have shape (B, T, 3, H, D)", qkv.sizes());
  const Tensor packed = unit_last_stride(qkv);
  return {packed.select(2, 0), packed.select(2, 1), packed.select(2, 2)};
}

std::tuple<Tensor, Tensor> packed_cpu(const Tensor& qkv, const OptionalTensor& attn_mask, double dropout_p,
                                      bool is_causal, std::optional<double> scale, const OptionalTensor& key_lengths,
                                      const OptionalTensor& segment_ids, std::optional<int64_t> window_left,
                                      std::optional<int64_t> window_right, const OptionalTensor& alibi_slopes,
                                      std::optional<double> softcap, const OptionalTensor& rng_state) {
  const char* op = "attention_packed";
  const Options options{attn_mask, dropout_p,   is_causal,    scale,        key_lengths, segment_ids,
                        false,     window_left, window_right, alibi_slopes, softcap,     rng_state};
  return forward(op, unpack(op, qkv), options);
}

std::tuple<Tensor, Tensor> packed_backward_cpu(const Tensor& grad_output, const Tensor& qkv, const Tensor& output,
                                               const Tensor& logsumexp, const OptionalTensor& attn_mask,
                                               double dropout_p, bool is_causal, std::optional<double> scale,
                                               const OptionalTensor& key_lengths, const OptionalTensor& segment_ids,
                                               std::optional<int64_t> window_left, std::optional<int64_t> window_right,
                                               const OptionalTensor& alibi_slopes, std::optional<double> softcap,
                                               const OptionalTensor& rng_state, bool need_mask) {
  const char* op = "attention_packed_backward";
  const Operands o = unpack(op, qkv);
  check_same_shape(op, "grad_output", grad_output, "output", output);
  Tensor grad_qkv = at::empty(qkv.sizes(), qkv.options());
  const Options options{attn_mask, dropout_p,   is_causal,    scale,        key_lengths, segment_ids,
                        false,     window_left, window_right, alibi_slopes, softcap,     rng_state};
  const Tensor grad_mask = backward(op, grad_output, o, output, logsumexp, options, need_mask, unpack(op, grad_qkv));
  return {grad_qkv, grad_mask};
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast: what follows the operands and the mask is passed on as it is
// ---------------------------------------------------------------------------------------------------------------------

bool differentiable(const OptionalTensor& mask) {
  return mask.has_value() && mask->requires_grad();
}

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
    static auto op = find_op<decltype(sdpa_cpu)>("fastllm::scaled_dot_product_attention");
    ctx->saved_data["need_mask"] = differentiable(attn_mask);
    ctx->saved_data["rest"] = pack(rest...);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, logsumexp] = op.call(query, key, value, attn_mask, rest...);
    ctx->save_for_backward({query, key, value, output, logsumexp, or_undefined(attn_mask)});
    ctx->mark_non_differentiable({logsumexp});
    return {output, logsumexp};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static auto op = find_op<decltype(sdpa_backward_cpu)>("fastllm::scaled_dot_product_attention_backward");
    const variable_list s = ctx->get_saved_variables();
    const auto [dq, dk, dv, dmask] = unpacked<Rest...>(ctx->saved_data["rest"], [&](const auto&... rest) {
      return op.call(grads[0], s[0], s[1], s[2], s[3], s[4], optional(s[5]), rest...,
                     ctx->saved_data["need_mask"].toBool());
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
    static auto op = find_op<decltype(packed_cpu)>("fastllm::attention_packed");
    ctx->saved_data["need_mask"] = differentiable(attn_mask);
    ctx->saved_data["rest"] = pack(rest...);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, logsumexp] = op.call(qkv, attn_mask, rest...);
    ctx->save_for_backward({qkv, output, logsumexp, or_undefined(attn_mask)});
    ctx->mark_non_differentiable({logsumexp});
    return {output, logsumexp};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static auto op = find_op<decltype(packed_backward_cpu)>("fastllm::attention_packed_backward");
    const variable_list s = ctx->get_saved_variables();
    const auto [dqkv, dmask] = unpacked<Rest...>(ctx->saved_data["rest"], [&](const auto&... rest) {
      return op.call(grads[0], s[0], s[1], s[2], optional(s[3]), rest..., ctx->saved_data["need_mask"].toBool());
    });
    return first_order_only("attention_packed", with_undefined({dqkv, dmask}, sizeof...(Rest)));
  }
};

// A kernel with the signature of `cpu` that runs Function.
template <typename Function, typename Result, typename... Args>
auto autograd_kernel(Result (*)(Args...)) {
  return +[](Args... args) -> Result {
    const variable_list out = Function::apply(args...);
    return {out[0], out[1]};
  };
}

template <c10::DeviceType kDevice>
Tensor cast(const Tensor& tensor) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), tensor, kDevice);
}

template <c10::DeviceType kDevice, typename Result, typename... Rest>
auto sdpa_autocast(Result (*)(const Tensor&, const Tensor&, const Tensor&, Rest...)) {
  return +[](const Tensor& query, const Tensor& key, const Tensor& value, Rest... rest) -> Result {
    static auto op = find_op<decltype(sdpa_cpu)>("fastllm::scaled_dot_product_attention");
    c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
    return op.call(cast<kDevice>(query), cast<kDevice>(key), cast<kDevice>(value), rest...);
  };
}

template <c10::DeviceType kDevice, typename Result, typename... Rest>
auto packed_autocast(Result (*)(const Tensor&, Rest...)) {
  return +[](const Tensor& qkv, Rest... rest) -> Result {
    static auto op = find_op<decltype(packed_cpu)>("fastllm::attention_packed");
    c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
    return op.call(cast<kDevice>(qkv), rest...);
  };
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  const std::string sdpa_options =
      "Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, bool enable_gqa, Tensor? key_lengths, "
      "Tensor? segment_ids, bool bottom_right, int? window_left, int? window_right, Tensor? alibi_slopes, "
      "float? softcap, Tensor? rng_state";
  const std::string packed_options =
      "Tensor? attn_mask, float dropout_p, bool is_causal, float? scale, Tensor? key_lengths, Tensor? segment_ids, "
      "int? window_left, int? window_right, Tensor? alibi_slopes, float? softcap, Tensor? rng_state";
  const std::string sdpa = "(Tensor query, Tensor key, Tensor value, " + sdpa_options + ") -> (Tensor, Tensor)";
  const std::string sdpa_backward =
      "(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor output, Tensor logsumexp, " + sdpa_options +
      ", bool need_mask) -> (Tensor, Tensor, Tensor, Tensor)";
  const std::string packed = "(Tensor qkv, " + packed_options + ") -> (Tensor, Tensor)";
  const std::string packed_backward = "(Tensor grad_output, Tensor qkv, Tensor output, Tensor logsumexp, " +
                                      packed_options + ", bool need_mask) -> (Tensor, Tensor)";
  m.def(("scaled_dot_product_attention" + sdpa).c_str());
  m.def(("scaled_dot_product_attention_backward" + sdpa_backward).c_str());
  m.def(("attention_packed" + packed).c_str());
  m.def(("attention_packed_backward" + packed_backward).c_str());
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("scaled_dot_product_attention", sdpa_cpu);
  m.impl("scaled_dot_product_attention_backward", sdpa_backward_cpu);
  m.impl("attention_packed", packed_cpu);
  m.impl("attention_packed_backward", packed_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("scaled_dot_product_attention", autograd_kernel<Sdpa<decltype(sdpa_cpu)>>(sdpa_cpu));
  m.impl("attention_packed", autograd_kernel<Packed<decltype(packed_cpu)>>(packed_cpu));
}

TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("scaled_dot_product_attention", sdpa_autocast<c10::DeviceType::CPU>(sdpa_cpu));
  m.impl("attention_packed", packed_autocast<c10::DeviceType::CPU>(packed_cpu));
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("scaled_dot_product_attention", sdpa_autocast<c10::DeviceType::CUDA>(sdpa_cpu));
  m.impl("attention_packed", packed_autocast<c10::DeviceType::CUDA>(packed_cpu));
}

}  // namespace fastllm
