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

void check_table(const char* op, const char* argument, int64_t num_embeddings, int64_t channels) {
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  FASTLLM_CHECK(num_embeddings < kLimit && channels < kLimit, op, argument,
                c10::str("have fewer than ", kLimit, " rows and columns on CUDA"),
                c10::str(num_embeddings, " x ", channels));
}

Tensor embedding_cuda(const Tensor& input, const Tensor& weight, std::optional<int64_t> padding_idx,
                      const OptionalTensor& position_weight, int64_t position_offset) {
  const char* op = "embedding";
  check_embedding(op, input, weight, padding_idx, position_weight, position_offset);
  check_table(op, "weight", weight.size(0), weight.size(1));
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

// Tokens are sorted on the device, then runs of equal ones are summed.
Tensor embedding_backward_cuda(const Tensor& grad_output, const Tensor& input, int64_t num_embeddings,
                               std::optional<int64_t> padding_idx) {
  const char* op = "embedding_backward";
  check_embedding_backward(op, grad_output, input, num_embeddings);
  const int64_t count = input.numel(), channels = grad_output.size(-1);
  check_table(op, "num_embeddings", num_embeddings, channels);
  const CudaGuard guard(grad_output);
  const Tensor grad = grad_output.contiguous(), tokens = input.contiguous();
  const auto vocabulary = static_cast<int32_t>(num_embeddings);
  Tensor grad_weight = at::zeros({num_embeddings, channels}, grad.options());
  const Tensor keys = at::empty({count}, tokens.options().dtype(at::kInt));
  const cuda::EmbeddingKeysParams key_params{.tokens = tokens_of(tokens),
                                             .vocabulary = vocabulary,
                                             .padding = padding_row(op, padding_idx, num_embeddings),
                                             .keys = keys.mutable_data_ptr<int32_t>()};
  check_launch(op, cuda::embedding_keys(key_params, current_stream()));
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const int64_t pieces = (count + cuda::kEmbeddingPiece - 1) / cuda::kEmbeddingPiece;
  Tensor partial = at::empty({pieces, 2, channels}, grad.options().dtype(at::kFloat));
  const cuda::EmbeddingBackwardParams params{.dtype = cuda_dtype(op, "grad_output", grad),
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

Tensor embedding_position_backward_cuda(const Tensor& grad_output, int64_t num_positions, int64_t position_offset) {
  const char* op = "embedding_position_backward";
  const PositionRows rows = check_position_backward(op, grad_output, num_positions, position_offset);
  const CudaGuard guard(grad_output);
  const Tensor grad = grad_output.contiguous();
  Tensor grad_position = at::empty({num_positions, rows.channels}, grad.options());
  const cuda::PositionBackwardParams params{.dtype = cuda_dtype(op, "grad_output", grad),
                                            .count = rows.count,
                                            .length = rows.length,
                                            .positions = num_positions,
                                            .channels = rows.channels,
                                            .offset = position_offset,
                                            .grad_output = grad.const_data_ptr(),
                                            .grad_position = grad_position.mutable_data_ptr()};
  check_launch(op, cuda::position_backward(params, current_stream()));
  return grad_position;
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("embedding", embedding_cuda);
  m.impl("embedding_backward", embedding_backward_cuda);
  m.impl("embedding_position_backward", embedding_position_backward_cuda);
}

}  // namespace fastllm
