// Argument checks, made by ops before any kernel runs. Every message reads
//   <op>: '<argument>' must <expectation>, got <what was got>
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace fastllm {

// A wrong value: raises ValueError in Python. The trailing arguments say what was got.
#define FASTLLM_CHECK(condition, op, argument, expectation, ...) \
  TORCH_CHECK_VALUE(condition, op, ": '", argument, "' must ", expectation, ", got ", __VA_ARGS__)

// A wrong type, dtype or device: raises TypeError in Python.
#define FASTLLM_CHECK_TYPE(condition, op, argument, expectation, ...) \
  TORCH_CHECK_TYPE(condition, op, ": '", argument, "' must ", expectation, ", got ", __VA_ARGS__)

inline bool is_kernel_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

inline void check_floating(const char* op, const char* argument, const at::Tensor& tensor) {
  FASTLLM_CHECK_TYPE(is_kernel_dtype(tensor.scalar_type()), op, argument, "be float32, float64, bfloat16 or float16",
                     tensor.scalar_type());
}

inline void check_same_dtype(const char* op, const char* argument, const at::Tensor& tensor, const char* reference,
                             const at::Tensor& other) {
  FASTLLM_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), op, argument,
                     c10::str("have the dtype of '", reference, "' (", other.scalar_type(), ")"), tensor.scalar_type());
}

inline void check_same_device(const char* op, const char* argument, const at::Tensor& tensor, const char* reference,
                              const at::Tensor& other) {
  FASTLLM_CHECK_TYPE(tensor.device() == other.device(), op, argument,
                     c10::str("be on the device of '", reference, "' (", other.device(), ")"), tensor.device());
}

inline void check_shape(const char* op, const char* argument, const at::Tensor& tensor, at::IntArrayRef shape) {
  FASTLLM_CHECK(tensor.sizes() == shape, op, argument, c10::str("have shape ", shape), tensor.sizes());
}

inline void check_same_shape(const char* op, const char* argument, const at::Tensor& tensor, const char* reference,
                             const at::Tensor& other) {
  FASTLLM_CHECK(tensor.sizes() == other.sizes(), op, argument,
                c10::str("have the shape of '", reference, "' (", other.sizes(), ")"), tensor.sizes());
}

// Every one of these int64, contiguous, is in [0, most], which is `what`. It reads them, so it is for the CPU.
inline void check_lengths(const char* op, const char* argument, const at::Tensor& lengths, int64_t most,
                          const char* what) {
  const int64_t* values = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < lengths.numel(); ++b)
    FASTLLM_CHECK(values[b] >= 0 && values[b] <= most, op, argument, c10::str("be in [0, ", most, "], ", what),
                  values[b], " at position ", b);
}

}  // namespace fastllm
