// fastllm::gelu, fastllm::bias_gelu and their backward on CUDA.
#include "cuda/gelu.h"

#include "ops/cuda.h"
#include "ops/gelu.h"

namespace fastllm {
namespace {

Tensor forward_cuda(const char* op, const Tensor& input, const OptionalTensor& bias, c10::string_view approximate) {
  const GeluShape shape = check_gelu(op, input, bias, approximate);
  const CudaGuard guard(input);
  const Tensor x = input.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  const cuda::GeluParams params{.dtype = cuda_dtype(op, "input", x),
                                .tanh = shape.tanh,
                                .count = shape.count,
                                .cols = shape.cols,
                                .input = x.const_data_ptr(),
                                .bias = bias ? b.const_data_ptr() : nullptr,
                                .output = output.mutable_data_ptr()};
  check_launch(op, cuda::gelu_forward(params, current_stream()));
  return output;
}

std::tuple<Tensor, Tensor> backward_cuda(const char* op, const Tensor& grad_output, const Tensor& input,
                                         const OptionalTensor& bias, c10::string_view approximate) {
  const GeluShape shape = check_gelu_backward(op, grad_output, input, bias, approximate);
  const CudaGuard guard(input);
  const Tensor grad = grad_output.contiguous(), x = input.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Tensor grad_input = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor grad_bias = bias ? at::empty_like(b) : Tensor(), partials;
  cuda::GeluParams params{.dtype = cuda_dtype(op, "input", x),
                          .tanh = shape.tanh,
                          .count = shape.count,
                          .cols = shape.cols,
                          .input = x.const_data_ptr(),
                          .grad_output = grad.const_data_ptr(),
                          .output = grad_input.mutable_data_ptr()};
  if (bias) {
    params.bias = b.const_data_ptr();
    params.grad_bias = grad_bias.mutable_data_ptr();
    partials = at::empty({cuda::gelu_groups(params), shape.cols}, x.options().dtype(at::kFloat));
    params.partials = partials.mutable_data_ptr<float>();
  }
  check_launch(op, cuda::gelu_backward(params, current_stream()));
  return {grad_input, grad_bias};
}

Tensor gelu_cuda(const Tensor& input, c10::string_view approximate) {
  return forward_cuda("gelu", input, std::nullopt, approximate);
}

Tensor gelu_backward_cuda(const Tensor& grad_output, const Tensor& input, c10::string_view approximate) {
  return std::get<0>(backward_cuda("gelu_backward", grad_output, input, std::nullopt, approximate));
}

Tensor bias_gelu_cuda(const Tensor& input, const Tensor& bias, c10::string_view approximate) {
  return forward_cuda("bias_gelu", input, bias, approximate);
}

std::tuple<Tensor, Tensor> bias_gelu_backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& bias,
                                                   c10::string_view approximate) {
  return backward_cuda("bias_gelu_backward", grad_output, input, bias, approximate);
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("gelu", gelu_cuda);
  m.impl("gelu_backward", gelu_backward_cuda);
  m.impl("bias_gelu", bias_gelu_cuda);
  m.impl("bias_gelu_backward", bias_gelu_backward_cuda);
}

}  // namespace fastllm
