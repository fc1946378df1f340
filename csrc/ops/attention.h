// What attention checks on every device, and its four entry points over any device's kernels.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "ops/dropout.h"
#include "ops/loss.h"

namespace fastllm {

// B batch, H heads of queries, Hkv of keys and values, Tq and Tk tokens, D head_dim, Dv of values

struct AttentionOptions {
  const OptionalTensor& attn_mask;
  double dropout_p;
  bool is_causal;
  std::optional<double> scale;
  const OptionalTensor& key_lengths;
  const OptionalTensor& segment_ids;
  bool bottom_right, after_lengths;  // where the last query stands: at the last key, or at the last of key_lengths
  std::optional<int64_t> window_left, window_right;
  const OptionalTensor& alibi_slopes;
  std::optional<double> softcap;
  const OptionalTensor& rng_state;
};

// Queries, keys and values as (B, T, H, D) views with a contiguous last dimension.
struct Operands {
  Tensor query, key, value;
};

inline Tensor unit_last_stride(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

// Of (B, H, T, D).
inline Operands tokens_first(const Operands& o) {
  const auto view = [](const Tensor& t) { return unit_last_stride(t).transpose(1, 2); };
  return {view(o.query), view(o.key), view(o.value)};
}

// Of (B, T, 3, H, D); or if num_heads, H, is given, of (B, T, H + 2 Hkv, D).
inline Operands unpack(const char* op, const Tensor& qkv, std::optional<int64_t> num_heads) {
  check_floating(op, "qkv", qkv);
  if (!num_heads) {
    FASTLLM_CHECK(qkv.dim() == 5 && qkv.size(2) == 3, op, "qkv",
                  "have shape (B, T, 3, H, D), or with num_heads (B, T, H + 2 K, D)", qkv.sizes());
    const Tensor packed = unit_last_stride(qkv);
    return {packed.select(2, 0), packed.select(2, 1), packed.select(2, 2)};
  }
  FASTLLM_CHECK(qkv.dim() == 4, op, "qkv", "have shape (B, T, H + 2 K, D) where num_heads is given", qkv.sizes());
  const Tensor packed = unit_last_stride(qkv);
  const int64_t all = packed.size(2), h = *num_heads, hkv = (all - h) / 2;
  FASTLLM_CHECK(h > 0 && hkv > 0 && h + 2 * hkv == all && h % hkv == 0, op, "num_heads",
                c10::str("be H of the H + 2 K = ", all, " heads of 'qkv', with K a divisor of H"), h);
  return {packed.narrow(2, 0, h), packed.narrow(2, h, hkv), packed.narrow(2, h + hkv, hkv)};
}

// The distances that a query sees: from its position - left to its position + right, which is at position i + shift,
// to which a batch element's number of keys is added where they fix the position.
struct Reach {
  int64_t shift, left, right;

  Reach(const Operands& o, const AttentionOptions& options) {
    const int64_t tq = o.query.size(1), tk = o.key.size(1), everything = tq + tk;  // more than any distance
    shift = options.after_lengths ? -tq : options.bottom_right ? tk - tq : 0;
    left = std::min(options.window_left.value_or(everything), everything);
    right = options.is_causal ? 0 : std::min(options.window_right.value_or(everything), everything);
  }
};

inline double attention_scale(const Operands& o, const AttentionOptions& options) {
  return options.scale.value_or(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, o.query.size(3)))));
}

// Whether backward makes the output's residual too: deltas of an output in 16 bits are off by its rounding, alike in
// queries that are alike, and the gradient of a mask that many queries share adds that up.
inline bool needs_residual(const Operands& o, bool need_mask) {
  return need_mask && o.query.element_size() == 2;
}

// Strides in (B, H, Tq, Tk) of a tensor that broadcasts to it.
inline std::array<int64_t, 4> broadcast_strides(const Tensor& mask) {
  std::array<int64_t, 4> strides{};
  for (int64_t i = 0; i < mask.dim(); ++i) {
    const int64_t dim = mask.dim() - 1 - i;
    strides[3 - i] = mask.size(dim) == 1 ? 0 : mask.stride(dim);
  }
  return strides;
}

// ---------------------------------------------------------------------------------------------------------------------
// Checks
// ---------------------------------------------------------------------------------------------------------------------

inline void check_operands(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
  check_floating(op, "query", query);
  FASTLLM_CHECK(query.dim() == 4, op, "query", "have shape (B, H, T, D)", query.sizes());
  const std::pair<const char*, const Tensor&> others[] = {{"key", key}, {"value", value}};
  for (const auto& [name, tensor] : others) {
    check_same_dtype(op, name, tensor, "query", query);
    check_same_device(op, name, tensor, "query", query);
    FASTLLM_CHECK(tensor.dim() == 4, op, name, c10::str("have shape (", query.size(0), ", H, T, D)"), tensor.sizes());
  }
  FASTLLM_CHECK(key.size(3) == query.size(3), op, "key", c10::str("have query's head_dim (", query.size(3), ")"),
                key.sizes());
  FASTLLM_CHECK(value.size(2) == key.size(2), op, "value", c10::str("have key's ", key.size(2), " tokens"),
                value.sizes());
}

// Of one batch size and, without enable_gqa, one number of heads: sizes of 1 are repeated, as torch broadcasts.
inline Operands broadcast(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                          bool enable_gqa) {
  check_operands(op, query, key, value);
  if (enable_gqa) {
    const int64_t h = query.size(1), hkv = key.size(1);
    FASTLLM_CHECK(h == hkv || (hkv > 0 && h % hkv == 0), op, "key", c10::str("have a divisor of query's ", h, " heads"),
                  key.sizes());
    FASTLLM_CHECK(value.size(1) == hkv, op, "value", c10::str("have key's ", hkv, " heads"), value.sizes());
  }
  Operands o{query, key, value};
  const std::pair<const char*, Tensor*> all[] = {{"query", &o.query}, {"key", &o.key}, {"value", &o.value}};
  for (int64_t dim = 0; dim < (enable_gqa ? 1 : 2); ++dim) {
    int64_t size = 1;
    for (const auto& [name, tensor] : all) {
      const int64_t own = tensor->size(dim);
      FASTLLM_CHECK(own == size || own == 1 || size == 1, op, name,
                    dim == 0 ? c10::str("have the others' batch size, ", size, ", or 1")
                             : c10::str("have the others' ", size,
                                        " heads or 1 (or with enable_gqa a divisor of query's, as key and value)"),
                    tensor->sizes());
      if (own != 1) size = own;
    }
    for (const auto& [name, tensor] : all) {
      if (tensor->size(dim) == size) continue;
      std::vector<int64_t> shape = tensor->sizes().vec();
      shape[dim] = size;
      *tensor = tensor->expand(shape);
    }
  }
  return o;
}

// The gradient (B, T, H, D) of a broadcast operand as that of the operand, (B, H, T, D).
inline Tensor sum_to(const Tensor& grad, const Tensor& operand) {
  Tensor sum = grad;
  if (sum.size(0) != operand.size(0)) sum = sum.sum(0, /*keepdim=*/true);
  if (sum.size(2) != operand.size(1)) sum = sum.sum(2, /*keepdim=*/true);
  return sum.transpose(1, 2);
}

inline void check_mask(const char* op, const Tensor& mask, const Operands& o) {
  FASTLLM_CHECK_TYPE(mask.scalar_type() == at::kBool || is_kernel_dtype(mask.scalar_type()), op, "attn_mask",
                     "be bool or floating", mask.scalar_type());
  check_same_device(op, "attn_mask", mask, "query", o.query);
  const std::array<int64_t, 4> full{o.query.size(0), o.query.size(2), o.query.size(1), o.key.size(1)};
  bool fits = mask.dim() <= 4;
  for (int64_t i = 0; fits && i < mask.dim(); ++i) {
    const int64_t size = mask.size(mask.dim() - 1 - i);
    fits = size == 1 || size == full[3 - i];
  }
  FASTLLM_CHECK(fits, op, "attn_mask", c10::str("broadcast to (B, H, Tq, Tk) = ", at::IntArrayRef(full)), mask.sizes());
}

inline void check_integers(const char* op, const char* argument, const Tensor& tensor, const Tensor& query) {
  FASTLLM_CHECK_TYPE(tensor.scalar_type() == at::kLong || tensor.scalar_type() == at::kInt, op, argument,
                     "be int64 or int32", tensor.scalar_type());
  check_same_device(op, argument, tensor, "query", query);
}

inline void check_slopes(const char* op, const Tensor& slopes, const Operands& o) {
  const int64_t b = o.query.size(0), h = o.query.size(2);
  FASTLLM_CHECK(slopes.sizes() == at::IntArrayRef({h}) || slopes.sizes() == at::IntArrayRef({b, h}), op, "alibi_slopes",
                c10::str("have shape (H) = [", h, "] or (B, H) = [", b, ", ", h, "]"), slopes.sizes());
  FASTLLM_CHECK_TYPE(is_kernel_dtype(slopes.scalar_type()), op, "alibi_slopes", "be floating", slopes.scalar_type());
  check_same_device(op, "alibi_slopes", slopes, "query", o.query);
  FASTLLM_CHECK(!slopes.requires_grad(), op, "alibi_slopes",
                "not require a gradient (give a learned bias as attn_mask)", "one that does");
}

// All of the options but dropout's.
inline void check_options(const char* op, const Operands& o, const AttentionOptions& options) {
  const int64_t b = o.query.size(0), t = o.query.size(1);
  if (options.attn_mask) check_mask(op, *options.attn_mask, o);
  if (options.key_lengths) {
    check_integers(op, "key_lengths", *options.key_lengths, o.query);
    check_shape(op, "key_lengths", *options.key_lengths, {b});
  }
  FASTLLM_CHECK(!options.after_lengths || options.key_lengths, op, "key_lengths",
                "be given with causal_align='key-lengths'", "None");
  FASTLLM_CHECK(!options.after_lengths || !options.segment_ids, op, "segment_ids",
                "be None with causal_align='key-lengths'", "a Tensor");
  if (options.segment_ids) {
    check_integers(op, "segment_ids", *options.segment_ids, o.query);
    FASTLLM_CHECK(o.key.size(1) == t, op, "segment_ids", "be given for self-attention, with as many keys as queries",
                  c10::str(t, " queries and ", o.key.size(1), " keys"));
    check_shape(op, "segment_ids", *options.segment_ids, {b, t});
  }
  if (options.alibi_slopes) check_slopes(op, *options.alibi_slopes, o);
  FASTLLM_CHECK(!options.softcap || *options.softcap > 0, op, "softcap", "be positive", *options.softcap);
  const std::pair<const char*, std::optional<int64_t>> sides[] = {{"window_left", options.window_left},
                                                                  {"window_right", options.window_right}};
  for (const auto& [name, side] : sides) FASTLLM_CHECK(!side || *side >= 0, op, name, "be at least 0", *side);
}

// ---------------------------------------------------------------------------------------------------------------------
// The ops on a device whose kernels are
//   forward(op, operands, options) -> (output (B, Tq, H, Dv), statistics (B, H, Tq, 2))
//   backward(op, grad_output, operands, output, statistics, options, need_mask, grads) -> grad_mask
// with (B, T, H, D) views; backward writes into `grads`, and grad_mask is undefined where it is not wanted.
// ---------------------------------------------------------------------------------------------------------------------

template <auto forward, auto backward>
struct AttentionOps {
  static std::tuple<Tensor, Tensor> sdpa(const Tensor& query, const Tensor& key, const Tensor& value,
                                         const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
                                         std::optional<double> scale, bool enable_gqa,
                                         const OptionalTensor& key_lengths, const OptionalTensor& segment_ids,
                                         bool bottom_right, bool after_lengths, std::optional<int64_t> window_left,
                                         std::optional<int64_t> window_right, const OptionalTensor& alibi_slopes,
                                         std::optional<double> softcap, const OptionalTensor& rng_state) {
    const char* op = "scaled_dot_product_attention";
    const auto [output, statistics] =
        forward(op, tokens_first(broadcast(op, query, key, value, enable_gqa)),
                {attn_mask, dropout_p, is_causal, scale, key_lengths, segment_ids, bottom_right, after_lengths,
                 window_left, window_right, alibi_slopes, softcap, rng_state});
    return {output.transpose(1, 2), statistics};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> sdpa_backward(
      const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& output,
      const Tensor& statistics, const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
      std::optional<double> scale, bool enable_gqa, const OptionalTensor& key_lengths,
      const OptionalTensor& segment_ids, bool bottom_right, bool after_lengths, std::optional<int64_t> window_left,
      std::optional<int64_t> window_right, const OptionalTensor& alibi_slopes, std::optional<double> softcap,
      const OptionalTensor& rng_state, bool need_mask) {
    const char* op = "scaled_dot_product_attention_backward";
    const Operands o = tokens_first(broadcast(op, query, key, value, enable_gqa));
    check_same_shape(op, "grad_output", grad_output, "output", output);
    check_shape(op, "statistics", statistics, {o.query.size(0), o.query.size(2), o.query.size(1), 2});
    const auto like = [](const Tensor& t) { return at::empty(t.sizes(), t.options()); };
    const Operands grads{like(o.query), like(o.key), like(o.value)};
    const Tensor grad_mask = backward(op, grad_output.transpose(1, 2), o, output.transpose(1, 2), statistics,
                                      {attn_mask, dropout_p, is_causal, scale, key_lengths, segment_ids, bottom_right,
                                       after_lengths, window_left, window_right, alibi_slopes, softcap, rng_state},
                                      need_mask, grads);
    return {sum_to(grads.query, query), sum_to(grads.key, key), sum_to(grads.value, value), grad_mask};
  }

  static std::tuple<Tensor, Tensor> packed(const Tensor& qkv, const OptionalTensor& attn_mask, double dropout_p,
                                           bool is_causal, std::optional<double> scale,
                                           const OptionalTensor& key_lengths, const OptionalTensor& segment_ids,
                                           std::optional<int64_t> window_left, std::optional<int64_t> window_right,
                                           const OptionalTensor& alibi_slopes, std::optional<double> softcap,
                                           const OptionalTensor& rng_state, std::optional<int64_t> num_heads) {
    const char* op = "attention_packed";
    return forward(op, unpack(op, qkv, num_heads),
                   {attn_mask, dropout_p, is_causal, scale, key_lengths, segment_ids, false, false, window_left,
                    window_right, alibi_slopes, softcap, rng_state});
  }

  static std::tuple<Tensor, Tensor> packed_backward(
      const Tensor& grad_output, const Tensor& qkv, const Tensor& output, const Tensor& statistics,
      const OptionalTensor& attn_mask, double dropout_p, bool is_causal, std::optional<double> scale,
      const OptionalTensor& key_lengths, const OptionalTensor& segment_ids, std::optional<int64_t> window_left,
      std::optional<int64_t> window_right, const OptionalTensor& alibi_slopes, std::optional<double> softcap,
      const OptionalTensor& rng_state, std::optional<int64_t> num_heads, bool need_mask) {
    const char* op = "attention_packed_backward";
    const Operands o = unpack(op, qkv, num_heads);
    check_same_shape(op, "grad_output", grad_output, "output", output);
    check_shape(op, "statistics", statistics, {o.query.size(0), o.query.size(2), o.query.size(1), 2});
    Tensor grad_qkv = at::empty(qkv.sizes(), qkv.options());
    const Tensor grad_mask = backward(op, grad_output, o, output, statistics,
                                      {attn_mask, dropout_p, is_causal, scale, key_lengths, segment_ids, false, false,
                                       window_left, window_right, alibi_slopes, softcap, rng_state},
                                      need_mask, unpack(op, grad_qkv, num_heads));
    return {grad_qkv, grad_mask};
  }

  // For TORCH_LIBRARY_IMPL and FASTLLM_CUDA_IMPL.
  template <typename Library>
  static void add_to(Library& m) {
    m.impl("scaled_dot_product_attention", sdpa);
    m.impl("scaled_dot_product_attention_backward", sdpa_backward);
    m.impl("attention_packed", packed);
    m.impl("attention_packed_backward", packed_backward);
  }
};

}  // namespace fastllm
