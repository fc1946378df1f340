// The checks of rotary_embedding, the same for every device, and its arguments as kernels want them.
#pragma once

#include "common/rotary.h"
#include "ops/op.h"

namespace fastllm {

struct RotaryArguments {
  Rotary rotary;
  Tensor input, cos, sin, positions;  // what the kernel reads; the tables in float32, for float64 inputs in float64
};

// Tables of (positions, pairs).
inline void check_rotary_tables(const char* op, const Tensor& input, const Tensor& cos, const Tensor& sin) {
  check_floating(op, "cos", cos);
  FASTLLM_CHECK(cos.dim() == 2 && 2 * cos.size(1) <= input.size(3), op, "cos",
                c10::str("have shape (positions, pairs) with at most ", input.size(3) / 2, " pairs"), cos.sizes());
  check_same_shape(op, "sin", sin, "cos", cos);
  check_same_dtype(op, "sin", sin, "cos", cos);
  check_same_device(op, "cos", cos, "input", input);
  check_same_device(op, "sin", sin, "input", input);
}

inline RotaryArguments check_rotary_embedding(const char* op, const Tensor& input, const Tensor& cos, const Tensor& sin,
                                              bool interleaved, c10::string_view layout, int64_t offset,
                                              const OptionalTensor& positions, bool inverse,
                                              std::optional<int64_t> num_heads) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(layout == "bhtd" || layout == "bthd", op, "layout", "be 'bhtd' or 'bthd'", "'", layout, "'");
  const bool tokens_outer = layout == "bthd";
  FASTLLM_CHECK(input.dim() == 4, op, "input", tokens_outer ? "have shape (B, T, H, D)" : "have shape (B, H, T, D)",
                input.sizes());
  check_rotary_tables(op, input, cos, sin);
  const int64_t batch = input.size(0), tokens = input.size(tokens_outer ? 1 : 2), table_rows = cos.size(0);
  const int64_t heads = input.size(tokens_outer ? 2 : 1);
  FASTLLM_CHECK(!num_heads || (*num_heads >= 0 && *num_heads <= heads), op, "num_heads",
                c10::str("be in [0, ", heads, "], the number of heads of 'input'"), *num_heads);
  if (positions) {
    FASTLLM_CHECK_TYPE(positions->scalar_type() == at::kLong, op, "positions", "be int64", positions->scalar_type());
    FASTLLM_CHECK(
        positions->sizes() == at::IntArrayRef({batch}) || positions->sizes() == at::IntArrayRef({batch, tokens}), op,
        "positions", c10::str("have shape (B) = [", batch, "] or (B, T) = [", batch, ", ", tokens, "]"),
        positions->sizes());
    check_same_device(op, "positions", *positions, "input", input);
  } else {
    FASTLLM_CHECK(offset >= 0 && offset <= table_rows - tokens, op, "positions",
                  c10::str("be in [0, ", table_rows - tokens, "], so that ", tokens, " tokens end in the ", table_rows,
                           " rows of 'cos'"),
                  offset);
  }
  RotaryArguments a{{},
                    input.stride(3) == 1 || input.size(3) <= 1 ? input : input.contiguous(),
                    cos.to(compute_type(input)).contiguous(),
                    sin.to(compute_type(input)).contiguous(),
                    or_undefined(positions)};
  const bool of_each_token = positions && positions->dim() == 2;
  a.rotary = {.batch = batch,
              .outer = input.size(1),
              .inner = input.size(2),
              .head_dim = input.size(3),
              .tokens_outer = tokens_outer,
              .strides = {a.input.stride(0), a.input.stride(1), a.input.stride(2)},
              .turning_heads = num_heads.value_or(heads),
              .pairs = cos.size(1),
              .interleaved = interleaved,
              .inverse = inverse,
              .table_rows = table_rows,
              .first = offset,
              .step = of_each_token ? 0 : 1,
              .positions = positions ? positions->const_data_ptr<int64_t>() : nullptr,
              .position_strides = {positions ? positions->stride(0) : 0, of_each_token ? positions->stride(1) : 0}};
  return a;
}

}  // namespace fastllm
