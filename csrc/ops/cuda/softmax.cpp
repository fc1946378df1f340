// fastllm::softmax and its backward on CUDA.
#include "cuda/softmax.h"

#include "ops/cuda.h"
#include "ops/softmax.h"

namespace fastllm {
namespace {

Tensor softmax_cuda(const Tensor& input, int64_t dim) {
  const SoftmaxShape shape = check_softmax("softmax", input, dim);
  const CudaGuard guard(input);
  const Tensor x = input.contiguous();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  cuda::SoftmaxParams params{.dtype = cuda_dtype("softmax", "input", x),
                             .outer = shape.outer,
                             .size = shape.size,
                             .inner = shape.inner,
                             .input = x.const_data_ptr(),
                             .grad_output = nullptr,
                             .output = output.mutable_data_ptr()};
  const int64_t bytes = cuda::softmax_pieces(params) * static_cast<int64_t>(sizeof(cuda::SoftmaxPiece));
  const Tensor pieces = at::empty({bytes}, x.options().dtype(at::kByte));
  params.pieces = static_cast<cuda::SoftmaxPiece*>(pieces.mutable_data_ptr());
  check_launch("softmax", cuda::softmax_forward(params, current_stream()));
  return output;
}

Tensor softmax_backward_cuda(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  const SoftmaxShape shape = check_softmax_backward("softmax_backward", grad_output, output, dim);
  const CudaGuard guard(output);
  const Tensor grad = grad_output.contiguous(), y = output.contiguous();
  Tensor grad_input = at::empty_like(y, at::MemoryFormat::Contiguous);
  const cuda::SoftmaxParams params{.dtype = cuda_dtype("softmax_backward", "output", y),
                                   .outer = shape.outer,
                                   .size = shape.size,
                                   .inner = shape.inner,
                                   .input = y.const_data_ptr(),
                                   .grad_output = grad.const_data_ptr(),
                                   .output = grad_input.mutable_data_ptr()};
  check_launch("softmax_backward", cuda::softmax_backward(params, current_stream()));
  return grad_input;
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("softmax", softmax_cuda);
  m.impl("softmax_backward", softmax_backward_cuda);
}

}  // namespace fastllm
