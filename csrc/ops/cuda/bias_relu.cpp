// fastllm::bias_relu and its backward on CUDA.
#include "cuda/bias_relu.h"

#include "ops/bias_relu.h"
#include "ops/cuda.h"
#include "ops/cuda/dropout_state.h"

namespace fastllm {
namespace {

Tensor bias_relu_cuda(const Tensor& input, const OptionalTensor& bias, double p, const OptionalTensor& rng_state) {
  const char* op = "bias_relu";
  check_bias_relu(op, input, bias);
  const CudaGuard guard(input);
  const DropoutState state(op, p, rng_state, input);
  const Tensor x = input.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  const cuda::BiasReluParams params{.dtype = cuda_dtype(op, "input", x),
                                    .count = x.numel(),
                                    .cols = dropout_row_length(x, bias.has_value()),
                                    .dropout = state.dropout,
                                    .input = x.const_data_ptr(),
                                    .bias = bias ? b.const_data_ptr() : nullptr,
                                    .output = output.mutable_data_ptr()};
  check_launch(op, cuda::bias_relu_forward(params, current_stream()));
  return output;
}

std::tuple<Tensor, Tensor> bias_relu_backward_cuda(const Tensor& grad_output, const Tensor& output, double p,
                                                   bool need_bias) {
  const char* op = "bias_relu_backward";
  check_bias_relu_backward(op, grad_output, output, p, need_bias);
  const CudaGuard guard(grad_output);
  const Tensor grad = grad_output.contiguous(), y = output.contiguous();
  Tensor grad_input = at::empty_like(grad, at::MemoryFormat::Contiguous), grad_bias, partials;
  cuda::BiasReluBackwardParams params{.dtype = cuda_dtype(op, "grad_output", grad),
                                      .count = grad.numel(),
                                      .cols = dropout_row_length(grad, need_bias),
                                      .scale = DropoutParams::make(p, 0, 0).scale,
                                      .grad_output = grad.const_data_ptr(),
                                      .output = y.const_data_ptr(),
                                      .grad_input = grad_input.mutable_data_ptr()};
  if (need_bias) {
    grad_bias = at::empty({grad.size(-1)}, grad.options());
    params.grad_bias = grad_bias.mutable_data_ptr();
    partials = at::empty({cuda::bias_relu_groups(params), params.cols}, grad.options().dtype(at::kFloat));
    params.partials = partials.mutable_data_ptr<float>();
  }
  check_launch(op, cuda::bias_relu_backward(params, current_stream()));
  return {grad_input, grad_bias};
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("bias_relu", bias_relu_cuda);
  m.impl("bias_relu_backward", bias_relu_backward_cuda);
}

}  // namespace fastllm
