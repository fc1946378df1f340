// fastllm::swiglu and its backward on CUDA.
#include "cuda/swiglu.h"

#include "ops/cuda.h"
#include "ops/swiglu.h"

namespace fastllm {
namespace {

cuda::SwigluParams arguments(const char* op, const SwigluInput& in) {
  return {.dtype = cuda_dtype(op, "input", in.first.tensor),
          .rows = in.rows,
          .cols = in.cols,
          .gate = in.gate(),
          .up = in.up(),
          .gate_stride = in.gate_stride(),
          .up_stride = in.up_stride()};
}

Tensor swiglu_cuda(const Tensor& input, const OptionalTensor& up) {
  const CudaGuard guard(input);
  const SwigluInput in = check_swiglu("swiglu", input, up);
  cuda::SwigluParams params = arguments("swiglu", in);
  Tensor output = at::empty(swiglu_shape(input, in.cols), input.options());
  params.output = output.mutable_data_ptr();
  check_launch("swiglu", cuda::swiglu_forward(params, current_stream()));
  return output;
}

std::tuple<Tensor, Tensor> swiglu_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                const OptionalTensor& up) {
  const CudaGuard guard(input);
  const SwigluInput in = check_swiglu("swiglu_backward", input, up);
  check_swiglu_gradient("swiglu_backward", grad_output, input, in.cols);
  cuda::SwigluParams params = arguments("swiglu_backward", in);
  const Tensor grad = grad_output.contiguous();
  const SwigluGradients out(in);
  params.grad_output = grad.const_data_ptr();
  params.grad_gate = out.gate_data();
  params.grad_up = out.up_data();
  params.grad_stride = out.stride();
  check_launch("swiglu_backward", cuda::swiglu_backward(params, current_stream()));
  return {out.input, out.up};
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("swiglu", swiglu_cuda);
  m.impl("swiglu_backward", swiglu_backward_cuda);
}

}  // namespace fastllm
