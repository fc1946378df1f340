// What the losses over class indices share on CUDA: their rows as the kernels take them, and the reduction.
//
// Whether a target is a class is known on the device alone, and to wait for the answer would stall. So one that is
// neither a class nor ignore_index makes its row's loss NaN, and with it the mean and the gradient: nothing is trained
// on a wrong row unnoticed.
#pragma once

#include <limits>

#include "cuda/cross_entropy.h"
#include "ops/cuda.h"
#include "ops/loss.h"

namespace fastllm {

// logits: (rows, V) with neighbouring classes adjacent; weight, in float32, and its sum may be undefined.
inline cuda::CrossEntropyRows cuda_rows(const char* op, const Tensor& logits, const Tensor& target,
                                        const Tensor& weight, const Tensor& weight_sum, const LossOptions& options) {
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  FASTLLM_CHECK(logits.size(1) < kLimit / 2, op, "input", c10::str("have fewer than ", kLimit / 2, " classes on CUDA"),
                logits.size(1));
  return {.dtype = cuda_dtype(op, "input", logits),
          .rows = logits.size(0),
          .classes = logits.size(1),
          .row_stride = logits.stride(0),
          .logits = logits.const_data_ptr(),
          .target = target.const_data_ptr<int64_t>(),
          .weight = weight.defined() ? weight.const_data_ptr<float>() : nullptr,
          .weight_sum = weight.defined() ? weight_sum.const_data_ptr<float>() : nullptr,
          .ignore_index = options.ignore_index,
          .label_smoothing = static_cast<float>(options.label_smoothing)};
}

struct Reduced {
  Tensor loss;   // (), float32; undefined without losses
  Tensor scale;  // (), float32: what the gradient of the losses' sum is multiplied by; 0 where no target counts
};

// "mean" or "sum" of the rows' losses, which may be undefined where the scale alone is wanted.
inline Reduced reduce_losses(const char* op, const Tensor& losses, const Tensor& target, int64_t classes,
                             const Tensor& weight, const LossOptions& options) {
  const auto floats = target.options().dtype(at::kFloat);
  const int64_t rows = target.numel(), pieces = (rows + cuda::kLossPiece - 1) / cuda::kLossPiece;
  const Tensor partial = at::empty({pieces, 2}, floats);
  Reduced reduced{losses.defined() ? at::empty({}, floats) : Tensor(), at::empty({}, floats)};
  const cuda::CrossEntropyReduceParams params{
      .rows = rows,
      .classes = classes,
      .losses = losses.defined() ? losses.const_data_ptr<float>() : nullptr,
      .target = target.const_data_ptr<int64_t>(),
      .weight = weight.defined() ? weight.const_data_ptr<float>() : nullptr,
      .ignore_index = options.ignore_index,
      .mean = options.reduction == "mean",
      .partial = partial.mutable_data_ptr<float>(),
      .loss = losses.defined() ? reduced.loss.mutable_data_ptr<float>() : nullptr,
      .scale = reduced.scale.mutable_data_ptr<float>()};
  check_launch(op, cuda::cross_entropy_reduce(params, current_stream()));
  return reduced;
}

}  // namespace fastllm
