// fastllm::rotary_embedding on CUDA.
#include "cuda/rotary_embedding.h"

#include "ops/cuda.h"
#include "ops/rotary_embedding.h"

namespace fastllm {
namespace {

Tensor rotary_embedding_cuda(const Tensor& input, const Tensor& cos, const Tensor& sin, bool interleaved,
                             c10::string_view layout, int64_t offset, const OptionalTensor& positions, bool inverse,
                             std::optional<int64_t> num_heads) {
  const char* op = "rotary_embedding";
  const CudaGuard guard(input);
  const RotaryArguments a =
      check_rotary_embedding(op, input, cos, sin, interleaved, layout, offset, positions, inverse, num_heads);
  const cuda::DType dtype = cuda_dtype(op, "input", input);
  Tensor output = at::empty(input.sizes(), input.options());
  const cuda::RotaryParams params{.dtype = dtype,
                                  .rotary = a.rotary,
                                  .input = a.input.const_data_ptr(),
                                  .cos = a.cos.const_data_ptr<float>(),
                                  .sin = a.sin.const_data_ptr<float>(),
                                  .output = output.mutable_data_ptr()};
  check_launch(op, cuda::rotary_embedding(params, current_stream()));
  return output;
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("rotary_embedding", rotary_embedding_cuda);
}

}  // namespace fastllm
