// What the losses over class indices share: their options, checks and reduction.
#pragma once

#include <vector>

#include "common/softmax_statistics.h"
#include "ops/op.h"

namespace fastllm {

struct LossOptions {
  int64_t ignore_index;
  c10::string_view reduction;
  double label_smoothing;

  void check(const char* op) const {
    FASTLLM_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", op, "reduction",
                  "be 'mean', 'sum' or 'none'", "'", reduction, "'");
    FASTLLM_CHECK(label_smoothing >= 0.0 && label_smoothing <= 1.0, op, "label_smoothing", "be in [0, 1]",
                  label_smoothing);
  }
};

// A SoftmaxStatistics of each element of `shape`, whose last dimension holds the two.
inline Tensor empty_statistics(std::vector<int64_t> shape, const Tensor& input) {
  shape.push_back(2);
  return at::empty(shape, input.options().dtype(compute_type(input)));
}
template <typename C>
SoftmaxStatistics<C>* mutable_statistics(const Tensor& t) {
  return reinterpret_cast<SoftmaxStatistics<C>*>(t.mutable_data_ptr<C>());
}
template <typename C>
const SoftmaxStatistics<C>* const_statistics(const Tensor& t) {
  return reinterpret_cast<const SoftmaxStatistics<C>*>(t.const_data_ptr<C>());
}

// The loss's own dtype. wide_loss is what autocast sets: in bfloat16 a loss would have 8 bits.
inline at::ScalarType loss_type(const Tensor& input, bool wide_loss) {
  return wide_loss ? compute_type(input) : input.scalar_type();
}

// Every target is a class or ignore_index. It reads them, so it is for the CPU.
inline void check_targets(const char* op, const Tensor& target, int64_t classes, int64_t ignore_index) {
  const int64_t* t = target.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < target.numel(); ++row) {
    FASTLLM_CHECK((t[row] >= 0 && t[row] < classes) || t[row] == ignore_index, op, "target",
                  c10::str("be in [0, ", classes, ") or ignore_index (", ignore_index, ")"), t[row], " at position ",
                  row);
  }
}

inline void check_target_dtype(const char* op, const Tensor& target) {
  FASTLLM_CHECK_TYPE(target.scalar_type() == at::kLong, op, "target",
                     "be int64, of class indices, or floating, of their probabilities", target.scalar_type());
}

// What the sum over rows is divided by: 1, or for "mean" the weights of the targets that count.
template <typename C>
double denominator(const LossOptions& options, const int64_t* target, int64_t rows, const C* weight) {
  if (options.reduction != "mean") return 1.0;
  double total = 0.0;
  for (int64_t row = 0; row < rows; ++row) {
    if (target[row] != options.ignore_index) total += weight ? static_cast<double>(weight[target[row]]) : 1.0;
  }
  return total;
}

}  // namespace fastllm
