// A tensor seen as a matrix for cpu/gemm.h or cpu/bfloat16_gemm.h, without a copy where its strides allow.
#pragma once

#include <ATen/ops/ones.h>

#include "cpu/bfloat16_gemm.h"
#include "cpu/gemm.h"
#include "ops/op.h"

namespace fastllm {

class RowMajor {
 public:
  // `tensor` is 2-d and adjacent along one of its dimensions.
  explicit RowMajor(Tensor tensor) : tensor_(std::move(tensor)), columns_adjacent_(adjacent(tensor_, 1)) {}

  // Whether neighbours along `dim` are neighbours in memory; strides of what has no neighbours do not matter.
  static bool adjacent(const Tensor& t, int64_t dim) {
    const int64_t other = 1 - dim;
    if (t.numel() == 0) return true;
    return (t.stride(dim) == 1 || t.size(dim) == 1) && (t.stride(other) >= t.size(dim) || t.size(other) == 1);
  }

  int64_t rows() const { return tensor_.size(0); }
  int64_t cols() const { return tensor_.size(1); }

  // As an operand of a product of T, float or c10::BFloat16.
  template <typename T = float>
  auto matrix() const {
    using Operand = std::conditional_t<std::is_same_v<T, float>, GemmOperand, BFloat16Operand>;
    return Operand{tensor_.const_data_ptr<T>(), tensor_.stride(columns_adjacent_ ? 0 : 1), !columns_adjacent_};
  }

  template <typename T = float>
  auto transposed() const {
    auto m = matrix<T>();
    m.transposed = !m.transposed;
    return m;
  }

 private:
  Tensor tensor_;
  bool columns_adjacent_;
};

// Whether tensors of this type are multiplied as bfloat16 by this project.
inline bool multiplies_bfloat16(const Tensor& t) {
  return t.scalar_type() == at::kBFloat16 && has_bfloat16_gemm();
}

// All dimensions but the last become rows: (*, C) -> (rows, C). Counts rows itself: from C = 0, -1 cannot be inferred.
inline Tensor flatten_rows(const Tensor& tensor) {
  if (tensor.dim() == 2) return tensor;
  return tensor.reshape({c10::multiply_integers(tensor.sizes().slice(0, tensor.dim() - 1)), tensor.size(-1)});
}

inline RowMajor rows_of(const Tensor& tensor) {
  const Tensor flat = flatten_rows(tensor);
  const bool usable = RowMajor::adjacent(flat, 1) || RowMajor::adjacent(flat, 0);
  return RowMajor(usable ? flat : flat.contiguous());
}

// The same with columns adjacent in any case: what GemmOptions::row_sums needs of the gradient whose transpose is A.
inline RowMajor contiguous_rows_of(const Tensor& tensor) {
  const Tensor flat = flatten_rows(tensor);
  return RowMajor(RowMajor::adjacent(flat, 1) ? flat : flat.contiguous());
}

// A bias's gradient where no product gives it by the way: the sums of a gradient's columns, in gemm's fixed order.
inline void sum_columns(const RowMajor& grad, Tensor& sums, bool accumulate = false) {
  const Tensor ones = at::ones({grad.rows(), 1}, sums.options());
  GemmOptions options;
  options.accumulate = accumulate;
  gemm(grad.cols(), 1, grad.rows(), grad.transposed(), {ones.const_data_ptr<float>(), 1},
       sums.mutable_data_ptr<float>(), 1, options);
}

}  // namespace fastllm
