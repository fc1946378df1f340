// fastllm::gelu and its backward on CUDA.
#include "cuda/gelu.h"

#include "ops/cuda.h"
#include "ops/gelu.h"

namespace fastllm {
namespace {

Tensor gelu_cuda(const Tensor& input, c10::string_view approximate) {
  const bool tanh = check_gelu("gelu", input, std::nullopt, approximate).tanh;
  const CudaGuard guard(input);
  const Tensor x = input.contiguous();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  const cuda::GeluParams params{.dtype = cuda_dtype("gelu", "input", x),
                                .tanh = tanh,
                                .count = x.numel(),
                                .input = x.const_data_ptr(),
                                .grad_output = nullptr,
                                .output = output.mutable_data_ptr()};
  check_launch("gelu", cuda::gelu_forward(params, current_stream()));
  return output;
}

Tensor gelu_backward_cuda(const Tensor& grad_output, const Tensor& input, c10::string_view approximate) {
  const bool tanh = check_gelu_backward("gelu_backward", grad_output, input, std::nullopt, approximate).tanh;
  const CudaGuard guard(input);
  const Tensor grad = grad_output.contiguous(), x = input.contiguous();
  Tensor grad_input = at::empty_like(x, at::MemoryFormat::Contiguous);
  const cuda::GeluParams params{.dtype = cuda_dtype("gelu_backward", "input", x),
                                .tanh = tanh,
                                .count = x.numel(),
                                .input = x.const_data_ptr(),
                                .grad_output = grad.const_data_ptr(),
                                .output = grad_input.mutable_data_ptr()};
  check_launch("gelu_backward", cuda::gelu_backward(params, current_stream()));
  return grad_input;
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("gelu", gelu_cuda);
  m.impl("gelu_backward", gelu_backward_cuda);
}

}  // namespace fastllm
