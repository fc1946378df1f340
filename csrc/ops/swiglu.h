// The checks of swiglu, the same for every device, and its tensors seen as rows of gate and up.
#pragma once

#include "ops/rows.h"

namespace fastllm {

// The second half of each row, where one tensor holds two.
inline const void* second_half(const Tensor& packed) {
  return static_cast<const char*>(packed.const_data_ptr()) + packed.size(-1) / 2 * packed.element_size();
}

// gate and up, `rows` of `cols` each: two tensors, or the halves [gate, up] of one.
struct SwigluInput {
  RowView first;
  std::optional<RowView> second;
  int64_t rows, cols;

  const void* gate() const { return first.tensor.const_data_ptr(); }
  const void* up() const { return second ? second->tensor.const_data_ptr() : second_half(first.tensor); }
  int64_t gate_stride() const { return first.stride; }
  int64_t up_stride() const { return second ? second->stride : first.stride; }
};

// The gradients, laid out as the inputs are; contiguous.
struct SwigluGradients {
  Tensor input, up;

  explicit SwigluGradients(const SwigluInput& in)
      : input(at::empty_like(in.first.tensor, at::MemoryFormat::Contiguous)),
        up(in.second ? at::empty_like(in.second->tensor, at::MemoryFormat::Contiguous) : Tensor()) {}

  void* gate_data() const { return input.mutable_data_ptr(); }
  void* up_data() const { return up.defined() ? up.mutable_data_ptr() : const_cast<void*>(second_half(input)); }
  int64_t stride() const { return input.size(-1); }
};

inline SwigluInput check_swiglu(const char* op, const Tensor& input, const OptionalTensor& up) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
  const RowView first(input);
  if (!up) {
    FASTLLM_CHECK(first.cols % 2 == 0, op, "input", "have an even last dimension, gate and up (or give 'up')",
                  input.sizes());
    return {first, std::nullopt, first.count, first.cols / 2};
  }
  check_same_device(op, "up", *up, "input", input);
  check_same_dtype(op, "up", *up, "input", input);
  check_same_shape(op, "up", *up, "input", input);
  return {first, RowView(*up), first.count, first.cols};
}

inline at::DimVector swiglu_shape(const Tensor& input, int64_t cols) {
  at::DimVector shape(input.sizes());
  shape.back() = cols;
  return shape;
}

inline void check_swiglu_gradient(const char* op, const Tensor& grad_output, const Tensor& input, int64_t cols) {
  check_shape(op, "grad_output", grad_output, swiglu_shape(input, cols));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_same_device(op, "grad_output", grad_output, "input", input);
}

}  // namespace fastllm
