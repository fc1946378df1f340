// fastllm::linear and its backward on CUDA: cuBLAS, through torch, whose handles, workspaces and settings it shares.
#include "ops/linear.h"

#include <ATen/ops/linear.h>

#include "ops/cuda.h"

namespace fastllm {
namespace {

Tensor linear_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  const char* op = "linear";
  check_linear(op, input, weight, bias);
  cuda_dtype(op, "input", input);
  return at::linear(input, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cuda(const Tensor& grad_output, const OptionalTensor& input,
                                                        const OptionalTensor& weight, bool need_bias) {
  const char* op = "linear_backward";
  check_linear_backward(op, grad_output, input, weight);
  cuda_dtype(op, "grad_output", grad_output);
  return linear_backward_by_torch(grad_output, input, weight, need_bias);
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("linear", linear_cuda);
  m.impl("linear_backward", linear_backward_cuda);
}

}  // namespace fastllm
