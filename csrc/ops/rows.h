// A tensor seen as rows (*, C) -> (rows, C) with adjacent elements inside a row, without a copy where its strides
// allow.
#pragma once

#include "ops/op.h"

namespace fastllm {

struct RowView {
  Tensor tensor;
  int64_t count, cols, stride;  // stride: from one row's start to the next's

  // `tensor` has at least one dimension.
  explicit RowView(const Tensor& t) : tensor(t), cols(t.size(-1)) {
    count = c10::multiply_integers(t.sizes().slice(0, t.dim() - 1));
    const auto found = stride_of(t);
    if (!found) tensor = t.contiguous();
    stride = found.value_or(cols);
  }

 private:
  static std::optional<int64_t> stride_of(const Tensor& t) {
    if (t.is_contiguous()) return t.size(-1);
    if (t.stride(-1) != 1 && t.size(-1) != 1) return std::nullopt;
    std::optional<int64_t> stride;
    int64_t expected = 0;  // of the next dimension outwards that has neighbours
    for (int64_t dim = t.dim() - 2; dim >= 0; --dim) {
      if (t.size(dim) == 1) continue;
      if (stride && t.stride(dim) != expected) return std::nullopt;
      if (!stride) stride = t.stride(dim);
      expected = t.stride(dim) * t.size(dim);
    }
    return stride.value_or(t.size(-1));
  }
};

}  // namespace fastllm
