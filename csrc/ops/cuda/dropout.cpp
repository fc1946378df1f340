// fastllm::dropout_add (which is dropout too, without a residual) and its backward on CUDA.
#include "cuda/dropout_add.h"
#include "ops/cuda.h"
#include "ops/cuda/dropout_state.h"
#include "ops/dropout_add.h"

namespace fastllm {
namespace {

Tensor dropout_add_cuda(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& bias, double p,
                        const OptionalTensor& rng_state) {
  const char* op = residual ? "dropout_add" : "dropout";
  check_dropout_add(op, input, residual, bias);
  const CudaGuard guard(input);
  const DropoutState state(op, p, rng_state, input);
  const Tensor x = input.contiguous(), r = residual ? residual->contiguous() : Tensor();
  const Tensor b = bias ? bias->contiguous() : Tensor();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  const cuda::DropoutAddParams params{.dtype = cuda_dtype(op, "input", x),
                                      .dropout = state.dropout,
                                      .count = x.numel(),
                                      .cols = dropout_row_length(x, bias.has_value()),
                                      .input = x.const_data_ptr(),
                                      .bias = bias ? b.const_data_ptr() : nullptr,
                                      .residual = residual ? r.const_data_ptr() : nullptr,
                                      .output = output.mutable_data_ptr()};
  check_launch(op, cuda::dropout_add(params, current_stream()));
  return output;
}

std::tuple<Tensor, Tensor> dropout_add_backward_cuda(const Tensor& grad_output, double p,
                                                     const OptionalTensor& rng_state, bool need_bias) {
  const char* op = "dropout_add_backward";
  check_floating(op, "grad_output", grad_output);
  const CudaGuard guard(grad_output);
  const DropoutState state(op, p, rng_state, grad_output);
  const Tensor grad = grad_output.contiguous();
  Tensor grad_input = at::empty_like(grad, at::MemoryFormat::Contiguous), grad_bias, partials;
  cuda::DropoutAddParams params{.dtype = cuda_dtype(op, "grad_output", grad),
                                .dropout = state.dropout,
                                .count = grad.numel(),
                                .cols = dropout_row_length(grad, need_bias),
                                .input = grad.const_data_ptr(),
                                .output = grad_input.mutable_data_ptr()};
  if (need_bias) {
    grad_bias = at::empty({grad.size(-1)}, grad.options());
    params.grad_bias = grad_bias.mutable_data_ptr();
    partials = at::empty({cuda::dropout_add_groups(params), params.cols}, grad.options().dtype(at::kFloat));
    params.partials = partials.mutable_data_ptr<float>();
  }
  check_launch(op, cuda::dropout_add(params, current_stream()));
  return {grad_input, grad_bias};
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("dropout_add", dropout_add_cuda);
  m.impl("dropout_add_backward", dropout_add_backward_cuda);
}

}  // namespace fastllm
