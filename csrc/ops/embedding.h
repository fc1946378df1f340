// The checks of embedding, the same for every device. Token ids are looked at by the CPU alone: see
// ops/cuda/embedding.cpp.
#pragma once

#include <algorithm>

#include "ops/op.h"

namespace fastllm {

inline int64_t length_of(const Tensor& input) {
  return input.dim() ? std::max<int64_t>(1, input.size(-1)) : 1;
}

inline void check_embedding(const char* op, const Tensor& input, const Tensor& weight, int64_t padding_idx,
                            const OptionalTensor& position_weight, int64_t position_offset) {
  constexpr int64_t kNoPadding = -1;
  FASTLLM_CHECK(weight.dim() == 2, op, "weight", "have shape (vocabulary, channels)", weight.sizes());
  check_floating(op, "weight", weight);
  check_same_device(op, "weight", weight, "input", input);
  FASTLLM_CHECK_TYPE(input.scalar_type() == at::kLong || input.scalar_type() == at::kInt, op, "input",
                     "be int64 or int32", input.scalar_type());
  FASTLLM_CHECK(padding_idx >= kNoPadding && padding_idx < weight.size(0), op, "padding_idx",
                c10::str("be in [0, ", weight.size(0), ")"), padding_idx);
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

// (*, channels), where a row a token goes.
inline Tensor empty_rows(const Tensor& input, const Tensor& weight) {
  std::vector<int64_t> shape = input.sizes().vec();
  shape.push_back(weight.size(1));
  return at::empty(shape, weight.options());
}

}  // namespace fastllm
