// fastllm::embedding and its backward on CUDA.
//
// Whether a token is a row of the table is known on the device alone, and to wait for the answer would stall. So one
// that is not gives a row of NaN, which no later step hides, and its gradient goes nowhere.
#include "cuda/embedding.h"

#include <ATen/ops/sort.h>

#include <limits>

#include "ops/cuda.h"
#include "ops/embedding.h"

namespace fastllm {
namespace {

cuda::Tokens tokens_of(const Tensor& contiguous) {
  return {contiguous.const_data_ptr(), contiguous.scalar_type() == at::kInt, contiguous.numel(), length_of(contiguous)};
}

void check(const char* op, const Tensor& input, const Tensor& weight, int64_t padding_idx,
           const OptionalTensor& position_weight, int64_t position_offset) {
  check_embedding(op, input, weight, padding_idx, position_weight, position_offset);
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  FASTLLM_CHECK(weight.size(0) < kLimit && weight.size(1) < kLimit, op, "weight",
                c10::str("have fewer than ", kLimit, " rows and columns on CUDA"), weight.sizes());
}

Tensor embedding_cuda(const Tensor& input, const Tensor& weight, int64_t padding_idx,
                      const OptionalTensor& position_weight, int64_t position_offset) {
  const char* op = "embedding";
  check(op, input, weight, padding_idx, position_weight, position_offset);
  const CudaGuard guard(weight);
  const Tensor tokens = input.contiguous(), w = weight.contiguous();
  const Tensor position = position_weight ? position_weight->contiguous() : Tensor();
  Tensor output = empty_rows(input, weight);
  const cuda::EmbeddingForwardParams params{.dtype = cuda_dtype(op, "weight", w),
                                            .tokens = tokens_of(tokens),
                                            .vocabulary = w.size(0),
                                            .channels = w.size(1),
                                            .weight = w.const_data_ptr(),
                                            .position = position.defined() ? position.const_data_ptr() : nullptr,
                                            .offset = position_offset,
                                            .output = output.mutable_data_ptr()};
  check_launch(op, cuda::embedding_forward(params, current_stream()));
  return output;
}

// The table's gradient: tokens are sorted on the device, then runs of equal ones are summed.
Tensor table_gradient(const char* op, const Tensor& grad, const Tensor& tokens, const Tensor& weight,
                      int64_t padding_idx) {
  const int32_t vocabulary = static_cast<int32_t>(weight.size(0));
  const int64_t count = tokens.numel(), channels = weight.size(1);
  Tensor grad_weight = at::zeros(weight.sizes(), weight.options());
  const Tensor keys = at::empty({count}, tokens.options().dtype(at::kInt));
  const cuda::EmbeddingKeysParams key_params{.tokens = tokens_of(tokens),
                                             .vocabulary = vocabulary,
                                             .padding = padding_idx,
                                             .keys = keys.mutable_data_ptr<int32_t>()};
  check_launch(op, cuda::embedding_keys(key_params, current_stream()));
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const int64_t pieces = (count + cuda::kEmbeddingPiece - 1) / cuda::kEmbeddingPiece;
  Tensor partial = at::empty({pieces, 2, channels}, weight.options().dtype(at::kFloat));
  const cuda::EmbeddingBackwardParams params{.dtype = cuda_dtype(op, "weight", weight),
                                             .count = count,
                                             .vocabulary = vocabulary,
                                             .channels = channels,
                                             .keys = sorted.const_data_ptr<int32_t>(),
                                             .order = order.const_data_ptr<int64_t>(),
                                             .grad_output = grad.const_data_ptr(),
                                             .partial = partial.mutable_data_ptr<float>(),
                                             .grad_weight = grad_weight.mutable_data_ptr()};
  check_launch(op, cuda::embedding_backward(params, current_stream()));
  return grad_weight;
}

Tensor position_gradient(const char* op, const Tensor& grad, const Tensor& tokens, const Tensor& position_weight,
                         int64_t position_offset) {
  Tensor grad_position = at::empty(position_weight.sizes(), position_weight.options());
  const cuda::PositionBackwardParams params{.dtype = cuda_dtype(op, "position_weight", position_weight),
                                            .count = tokens.numel(),
                                            .length = length_of(tokens),
                                            .positions = position_weight.size(0),
                                            .channels = position_weight.size(1),
                                            .offset = position_offset,
                                            .grad_output = grad.const_data_ptr(),
                                            .grad_position = grad_position.mutable_data_ptr()};
  check_launch(op, cuda::position_backward(params, current_stream()));
  return grad_position;
}

std::tuple<Tensor, Tensor> embedding_backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   int64_t padding_idx, const OptionalTensor& position_weight,
                                                   int64_t position_offset) {
  const char* op = "embedding_backward";
  check(op, input, weight, padding_idx, position_weight, position_offset);
  check_same_dtype(op, "grad_output", grad_output, "weight", weight);
  check_same_device(op, "grad_output", grad_output, "weight", weight);
  const CudaGuard guard(weight);
  const Tensor grad = grad_output.contiguous(), tokens = input.contiguous();
  const Tensor grad_weight = table_gradient(op, grad, tokens, weight, padding_idx);
  if (!position_weight) return {grad_weight, Tensor()};
  return {grad_weight, position_gradient(op, grad, tokens, *position_weight, position_offset)};
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("embedding", embedding_cuda);
  m.impl("embedding_backward", embedding_backward_cuda);
}

}  // namespace fastllm
