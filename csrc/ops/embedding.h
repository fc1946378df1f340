// The checks of embedding, the same for every device. Token ids are looked at by the CPU alone: see
// ops/cuda/embedding.cpp.
#pragma once

#include <algorithm>
#include <optional>

#include "ops/op.h"

namespace fastllm {

inline int64_t length_of(const Tensor& input) {
  return input.dim() ? std::max<int64_t>(1, input.size(-1)) : 1;
}

// The row that gets no gradient, as kernels take it: -1 is none. The argument counts from the end where it is negative.
inline int64_t padding_row(const char* op, std::optional<int64_t> padding_idx, int64_t num_embeddings) {
  if (!padding_idx) return -1;
  FASTLLM_CHECK(*padding_idx >= -num_embeddings && *padding_idx < num_embeddings, op, "padding_idx",
                c10::str("be in [", -num_embeddings, ", ", num_embeddings, ") or None"), *padding_idx);
  return *padding_idx < 0 ? *padding_idx + num_embeddings : *padding_idx;
}

inline void check_embedding(const char* op, const Tensor& input, const Tensor& weight,
                            std::optional<int64_t> padding_idx, const OptionalTensor& position_weight,
                            int64_t position_offset) {
  FASTLLM_CHECK(weight.dim() == 2, op, "weight", "have shape (vocabulary, channels)", weight.sizes());
  check_floating(op, "weight", weight);
  check_same_device(op, "weight", weight, "input", input);
  FASTLLM_CHECK_TYPE(input.scalar_type() == at::kLong || input.scalar_type() == at::kInt, op, "input",
                     "be int64 or int32", input.scalar_type());
  padding_row(op, padding_idx, weight.size(0));
  if (!position_weight) return;
  const int64_t channels = weight.size(1), length = length_of(input);
  check_same_dtype(op, "position_weight", *position_weight, "weight", weight);
  check_same_device(op, "position_weight", *position_weight, "weight", weight);
  FASTLLM_CHECK(position_weight->dim() == 2 && position_weight->size(1) == channels, op, "position_weight",
                c10::str("have shape (positions, ", channels, ")"), position_weight->sizes());
  FASTLLM_CHECK(position_offset >= 0 && position_offset + length <= position_weight->size(0), op, "position_weight",
                c10::str("have at least ", position_offset + length, " rows (position_offset + tokens)"),
                position_weight->sizes());
}

// Of the table's gradient (num_embeddings, channels).
inline void check_embedding_backward(const char* op, const Tensor& grad_output, const Tensor& input,
                                     int64_t num_embeddings) {
  check_floating(op, "grad_output", grad_output);
  check_same_device(op, "input", input, "grad_output", grad_output);
  FASTLLM_CHECK_TYPE(input.scalar_type() == at::kLong || input.scalar_type() == at::kInt, op, "input",
                     "be int64 or int32", input.scalar_type());
  FASTLLM_CHECK(grad_output.dim() == input.dim() + 1 && grad_output.sizes().slice(0, input.dim()) == input.sizes(), op,
                "grad_output", c10::str("have the shape of 'input' (", input.sizes(), ") and channels"),
                grad_output.sizes());
  FASTLLM_CHECK(num_embeddings >= 0, op, "num_embeddings", "be at least 0", num_embeddings);
}

// The rows of an output (*, tokens, channels) as the position table meets them.
struct PositionRows {
  int64_t count, length, channels;  // length: rows after which positions start again
};

inline PositionRows check_position_backward(const char* op, const Tensor& grad_output, int64_t num_positions,
                                            int64_t position_offset) {
  check_floating(op, "grad_output", grad_output);
  FASTLLM_CHECK(grad_output.dim() >= 1, op, "grad_output", "have at least one dimension", "a scalar");
  const at::IntArrayRef tokens = grad_output.sizes().slice(0, grad_output.dim() - 1);
  const int64_t length = tokens.empty() ? 1 : std::max<int64_t>(1, tokens.back());
  FASTLLM_CHECK(position_offset >= 0 && position_offset + length <= num_positions, op, "num_positions",
                c10::str("be at least ", position_offset + length, " (position_offset + tokens)"), num_positions);
  return {c10::multiply_integers(tokens), length, grad_output.size(-1)};
}

// (*, channels), where a row a token goes.
inline Tensor empty_rows(const Tensor& input, const Tensor& weight) {
  std::vector<int64_t> shape = input.sizes().vec();
  shape.push_back(weight.size(1));
  return at::empty(shape, weight.options());
}

}  // namespace fastllm
