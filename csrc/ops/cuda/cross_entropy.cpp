// fastllm::cross_entropy and its backward on CUDA.
#include "ops/cross_entropy.h"

#include <ATen/ops/sum.h>

#include "ops/cuda.h"
#include "ops/cuda/loss.h"

namespace fastllm {
namespace {

Tensor sum_of(const Tensor& weight) {
  return weight.defined() ? weight.sum() : Tensor();
}

std::tuple<Tensor, Tensor> cross_entropy_cuda(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                              int64_t ignore_index, c10::string_view reduction, double label_smoothing,
                                              bool wide_loss) {
  const char* op = "cross_entropy";
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Logits logits = check_cross_entropy(op, input, target, weight, options);
  const CudaGuard guard(input);
  const Tensor weight_sum = sum_of(logits.weight);
  const auto floats = input.options().dtype(at::kFloat);
  Tensor losses = at::empty({target.numel()}, floats), statistics = empty_statistics({target.numel()}, input);
  const cuda::CrossEntropyForwardParams params{
      .in = cuda_rows(op, logits.matrix, logits.target, logits.weight, weight_sum, options),
      .loss = losses.mutable_data_ptr<float>(),
      .statistics = mutable_statistics<float>(statistics),
      .grad = {},
      .grad_logits = nullptr};
  check_launch(op, cuda::cross_entropy_forward(params, current_stream()));
  const Tensor loss =
      reduction == "none"
          ? losses.view(target.sizes())
          : reduce_losses(op, losses, logits.target, logits.matrix.size(1), logits.weight, options).loss;
  return {loss.to(loss_type(input, wide_loss)), statistics};
}

Tensor cross_entropy_backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                   const OptionalTensor& weight, const Tensor& statistics, int64_t ignore_index,
                                   c10::string_view reduction, double label_smoothing) {
  const char* op = "cross_entropy_backward";
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Logits logits = check_cross_entropy(op, input, target, weight, options);
  check_cross_entropy_gradient(op, grad_output, target, statistics, options);
  check_same_device(op, "grad_output", grad_output, "input", input);
  check_same_device(op, "statistics", statistics, "input", input);
  const CudaGuard guard(input);
  const Tensor grads = grad_output.to(at::kFloat).contiguous(), sums = statistics.contiguous();
  const Tensor weight_sum = sum_of(logits.weight);
  const Tensor scale =
      reduction == "mean"
          ? reduce_losses(op, Tensor(), logits.target, logits.matrix.size(1), logits.weight, options).scale
          : Tensor();
  Tensor grad_matrix = at::empty_like(logits.matrix);
  const cuda::CrossEntropyBackwardParams params{
      .in = cuda_rows(op, logits.matrix, logits.target, logits.weight, weight_sum, options),
      .statistics = const_statistics<float>(sums),
      .grad = {.loss = grads.const_data_ptr<float>(),
               .one = reduction != "none",
               .scale = scale.defined() ? scale.const_data_ptr<float>() : nullptr},
      .grad_logits = grad_matrix.mutable_data_ptr()};
  check_launch(op, cuda::cross_entropy_backward(params, current_stream()));
  return as_input(grad_matrix, input, target);
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("cross_entropy", cross_entropy_cuda);
  m.impl("cross_entropy_backward", cross_entropy_backward_cuda);
}

}  // namespace fastllm
