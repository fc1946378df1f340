// fastllm::linear_cross_entropy on CUDA: cuBLAS makes a chunk's logits, a kernel turns them into losses and, where they
// lie, into their gradient, and cuBLAS multiplies that into the gradients of input and weight.
//
// Logits and their gradient have the input's dtype, as torch's have; losses and the weight's gradient are summed in
// float32. The mean's denominator never leaves the device.
#include "ops/linear_cross_entropy.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>

#include "ops/cuda.h"
#include "ops/cuda/loss.h"
#include "ops/cuda_product.h"

namespace fastllm {
namespace {

// N rows, C channels, V classes

// Rows at a time: as many as make the logits as large as the input (Liger Kernel's choice), and at least kLeast. A
// chunk reads and writes the weight's gradient in float32, 8 V C bytes, and multiplies 6 V C flops a row: on an H100
// (3.35 TB/s, 700 TFLOP/s) 2048 rows make that traffic a seventh of the products' time.
int64_t chunk_of(int64_t rows, int64_t channels, int64_t classes) {
  constexpr int64_t kLeast = 2048, kMultiple = 128;
  const int64_t chunks = (classes + channels - 1) / std::max<int64_t>(1, channels);
  const int64_t wanted = (rows / std::max<int64_t>(1, chunks) + kMultiple) / kMultiple * kMultiple;
  return std::min(rows, std::max(kLeast, wanted));
}

// (rows, classes) whose rows start at 16-byte borders, whatever their length: cuBLAS is several times slower without.
Tensor empty_logits(const Tensor& input, int64_t rows, int64_t classes) {
  constexpr int64_t kMultiple = 64;
  const int64_t stride = (classes + kMultiple - 1) / kMultiple * kMultiple;
  return at::empty({rows, stride}, input.options()).narrow(1, 0, classes);
}

struct Arguments {
  Tensor input, weight, bias, target;  // contiguous; bias may be undefined
};

struct Result {
  Tensor losses;                              // a row each, float32
  Tensor grad_input, grad_weight, grad_bias;  // of the input's dtype, float32, float32
};

// Those of the gradients that are defined.
void add_gradients(const Tensor& grad_logits, const Tensor& x, const Tensor& weight, bool first, Tensor grad_x,
                   Result& result) {
  if (grad_x.defined()) at::mm_out(grad_x, grad_logits, weight);
  if (result.grad_weight.defined()) add_product(result.grad_weight, grad_logits.t(), x, first ? 0 : 1);
  if (!result.grad_bias.defined()) return;
  const Tensor sum = at::sum(grad_logits, {0}, /*keepdim=*/false, at::kFloat);
  first ? result.grad_bias.copy_(sum) : result.grad_bias.add_(sum);
}

// grad: the gradient of the rows' losses; null computes losses alone.
Result run(const char* op, const Arguments& a, const LossOptions& options, const cuda::LossGradient* grad,
           const Wanted& wanted) {
  const at::NoGradGuard no_grad;  // with create_graph=True, backward comes here with tensors that require gradients
  const int64_t rows = a.input.size(0), channels = a.input.size(1), classes = a.weight.size(0);
  const auto floats = a.input.options().dtype(at::kFloat);
  Result result{at::empty({rows}, floats), Tensor(), Tensor(), Tensor()};
  if (grad) {
    if (wanted.input) result.grad_input = at::empty_like(a.input);
    if (wanted.weight)
      result.grad_weight = rows ? at::empty(a.weight.sizes(), floats) : at::zeros(a.weight.sizes(), floats);
    if (wanted.bias && a.bias.defined())
      result.grad_bias = rows ? at::empty({classes}, floats) : at::zeros({classes}, floats);
  }
  const int64_t chunk = chunk_of(rows, channels, classes);
  const Tensor buffer = empty_logits(a.input, chunk, classes);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const Tensor x = a.input.narrow(0, begin, count);
    Tensor logits = buffer.narrow(0, 0, count);
    a.bias.defined() ? at::addmm_out(logits, a.bias, x, a.weight.t()) : at::mm_out(logits, x, a.weight.t());
    cuda::CrossEntropyForwardParams params{
        .in = cuda_rows(op, logits, a.target.narrow(0, begin, count), Tensor(), Tensor(), options),
        .loss = result.losses.mutable_data_ptr<float>() + begin,
        .statistics = nullptr,
        .grad = {},
        .grad_logits = nullptr};
    if (grad) {
      params.grad = *grad;
      if (!grad->one && grad->loss) params.grad.loss += begin;
      params.grad_logits = logits.mutable_data_ptr();
    }
    check_launch(op, cuda::cross_entropy_forward(params, current_stream()));
    const Tensor grad_x = result.grad_input.defined() ? result.grad_input.narrow(0, begin, count) : Tensor();
    if (grad) add_gradients(logits, x, a.weight, begin == 0, grad_x, result);
  }
  return result;
}

Arguments prepare(const char* op, const Tensor& input, const Tensor& weight, const Tensor& target,
                  const OptionalTensor& bias, const LossOptions& options) {
  check_linear_cross_entropy(op, input, weight, target, bias, options);
  cuda_dtype(op, "input", input);
  return {input.contiguous(), weight.contiguous(), bias ? bias->contiguous() : Tensor(), target.contiguous()};
}

Tensor loss_of(const char* op, const Tensor& losses, const Arguments& a, const LossOptions& options, bool wide_loss) {
  const Tensor loss = options.reduction == "none"
                          ? losses
                          : reduce_losses(op, losses, a.target, a.weight.size(0), Tensor(), options).loss;
  return loss.to(loss_type(a.input, wide_loss));
}

Tensor linear_cross_entropy_cuda(const Tensor& input, const Tensor& weight, const Tensor& target,
                                 const OptionalTensor& bias, int64_t ignore_index, c10::string_view reduction,
                                 double label_smoothing, bool wide_loss) {
  const char* op = "linear_cross_entropy";
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Arguments a = prepare(op, input, weight, target, bias, options);
  const CudaGuard guard(input);
  return loss_of(op, run(op, a, options, nullptr, {}).losses, a, options, wide_loss);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> with_gradients_cuda(const Tensor& input, const Tensor& weight,
                                                               const Tensor& target, const OptionalTensor& bias,
                                                               int64_t ignore_index, c10::string_view reduction,
                                                               double label_smoothing, bool wide_loss, bool need_input,
                                                               bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy_with_gradients";
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Arguments a = prepare(op, input, weight, target, bias, options);
  FASTLLM_CHECK(reduction != "none", op, "reduction", "be 'mean' or 'sum'", "'none'");
  const CudaGuard guard(input);
  const Tensor scale =
      reduction == "mean" ? reduce_losses(op, Tensor(), a.target, a.weight.size(0), Tensor(), options).scale : Tensor();
  // A mean over many rows makes gradients of logits that float16 cannot hold: there the scale comes last, in float32.
  const bool scale_last = scale.defined() && input.scalar_type() == at::kHalf;
  const bool scale_first = scale.defined() && !scale_last;
  const cuda::LossGradient grad{
      .loss = nullptr, .one = false, .scale = scale_first ? scale.const_data_ptr<float>() : nullptr};
  const Result result = run(op, a, options, &grad, {need_input, need_weight, need_bias});
  const auto kept = [&](const Tensor& gradient) {
    if (!gradient.defined()) return Tensor();
    const Tensor as_kept = gradient.to(kept_type(input, wide_loss));
    return scale_last ? as_kept.mul(scale) : as_kept;
  };
  return {loss_of(op, result.losses, a, options, wide_loss), kept(result.grad_input), kept(result.grad_weight),
          kept(result.grad_bias)};
}

std::tuple<Tensor, Tensor, Tensor> backward_cuda(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                 const Tensor& target, const OptionalTensor& bias, int64_t ignore_index,
                                                 double label_smoothing, bool need_input, bool need_weight,
                                                 bool need_bias) {
  const char* op = "linear_cross_entropy_backward";
  const LossOptions options{ignore_index, "none", label_smoothing};
  const Arguments a = prepare(op, input, weight, target, bias, options);
  check_row_gradients(op, grad_output, target);
  const CudaGuard guard(input);
  const Tensor row_grads = grad_output.to(at::kFloat).contiguous();
  const cuda::LossGradient grad{.loss = row_grads.const_data_ptr<float>(), .one = false, .scale = nullptr};
  const Result result = run(op, a, options, &grad, {need_input, need_weight, need_bias});
  const auto cast = [&](const Tensor& sum) { return sum.defined() ? sum.to(input.scalar_type()) : sum; };
  return {result.grad_input, cast(result.grad_weight), cast(result.grad_bias)};
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("linear_cross_entropy", linear_cross_entropy_cuda);
  m.impl("linear_cross_entropy_with_gradients", with_gradients_cuda);
  m.impl("linear_cross_entropy_backward", backward_cuda);
}

}  // namespace fastllm
