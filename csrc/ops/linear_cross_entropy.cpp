// fastllm::linear_cross_entropy: a linear layer and cross-entropy without the logits of all rows.
//
// Rows are taken a chunk at a time: the chunk's logits are made, reduced to losses and, where gradients are wanted,
// overwritten by their own gradient and multiplied into the gradients of input, weight and bias at once (the idea of
// Liger Kernel's fused linear cross entropy, Hsu et al., 2024). So the op that autograd records returns the gradients
// beside the loss. Only reduction="none" cannot know its incoming gradient in forward, and computes again in backward.
//
// wide_loss is what autocast sets: the loss, and the gradients that wait for backward, stay in the type that is
// computed in. In bfloat16 a loss would have 8 bits; in float16 gradients of 1/N would vanish before the scaler's
// factor comes.
#include "ops/linear_cross_entropy.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <numeric>

#include "cpu/cross_entropy.h"
#include "ops/matrix.h"

namespace fastllm {
namespace {

// Logits at a time: 32 MiB, so that large vocabularies' weights are read few times and the logits stay near the cache.
// With products of bfloat16 twice that: each chunk takes the whole gradient of the weight to memory and back.
int64_t chunk_rows(const Tensor& input, int64_t classes) {
  return std::max<int64_t>(48, (multiplies_bfloat16(input) ? 16 : 8) * 1024 * 1024 / classes);
}

struct Arguments {
  Tensor input, weight, bias, target;  // contiguous; bias may be undefined. bfloat16 if products are, else the next
  at::ScalarType computing;            // float32 or float64: of logits, losses and gradients

  at::TensorOptions options() const { return input.options().dtype(computing); }
};

Arguments prepare(const char* op, const Tensor& input, const Tensor& weight, const Tensor& target,
                  const OptionalTensor& bias, const LossOptions& options) {
  check_linear_cross_entropy(op, input, weight, target, bias, options);
  // bfloat16 and float16 are computed in float32 throughout: their logits are never rounded. But where bfloat16 has
  // products of its own, the gradient of the logits is, as it goes into two of them.
  const at::ScalarType computing = compute_type(input);
  const at::ScalarType multiplied = multiplies_bfloat16(input) ? at::kBFloat16 : computing;
  const auto prepared = [&](const Tensor& t) { return t.to(multiplied).contiguous(); };
  Arguments arguments{prepared(input), prepared(weight), bias ? prepared(*bias) : Tensor(), target.contiguous(),
                      computing};
  check_targets(op, arguments.target, weight.size(0), options.ignore_index);
  return arguments;
}

// ---------------------------------------------------------------------------------------------------------------------
// The three products, in each precision
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
void multiply_logits(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& logits) {
  gemm(x.size(0), weight.size(0), x.size(1), RowMajor(x).matrix<T>(), RowMajor(weight).transposed<T>(),
       logits.mutable_data_ptr<float>(), weight.size(0), {.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr});
}

void make_logits(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& logits) {
  if (x.scalar_type() == at::kDouble)
    bias.defined() ? at::addmm_out(logits, bias, x, weight.t()) : at::mm_out(logits, x, weight.t());
  else
    (x.scalar_type() == at::kFloat ? multiply_logits<float> : multiply_logits<c10::BFloat16>)(x, weight, bias, logits);
}

template <typename T>
void multiply_gradients(const Tensor& grad_logits, const Tensor& x, const Tensor& weight, bool first, Tensor& grad_x,
                        Tensor& grad_weight, Tensor& grad_bias) {
  const int64_t rows = x.size(0), classes = weight.size(0), channels = x.size(1);
  if (!grad_weight.defined() && grad_bias.defined()) sum_columns(RowMajor(grad_logits), grad_bias, !first);
  if (!grad_x.defined() && !grad_weight.defined()) return;
  const RowMajor grad(grad_logits.to(x.scalar_type()));
  if (grad_x.defined())
    gemm(rows, channels, classes, grad.matrix<T>(), RowMajor(weight).matrix<T>(), grad_x.mutable_data_ptr<float>(),
         channels);
  if (grad_weight.defined())
    gemm(classes, channels, rows, grad.transposed<T>(), RowMajor(x).matrix<T>(), grad_weight.mutable_data_ptr<float>(),
         channels,
         {.accumulate = !first, .row_sums = grad_bias.defined() ? grad_bias.mutable_data_ptr<float>() : nullptr});
}

// Those of the gradients that are defined.
void add_gradients(const Tensor& grad_logits, const Tensor& x, const Tensor& weight, bool first, Tensor grad_x,
                   Tensor& grad_weight, Tensor& grad_bias) {
  if (x.scalar_type() == at::kDouble) {
    if (grad_x.defined()) at::mm_out(grad_x, grad_logits, weight);
    if (grad_weight.defined()) grad_weight.addmm_(grad_logits.t(), x, first ? 0 : 1);
    if (grad_bias.defined()) first ? grad_bias.copy_(grad_logits.sum(0)) : grad_bias.add_(grad_logits.sum(0));
  } else {
    (x.scalar_type() == at::kFloat
         ? multiply_gradients<float>
         : multiply_gradients<c10::BFloat16>)(grad_logits, x, weight, first, grad_x, grad_weight, grad_bias);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The pass over chunks
// ---------------------------------------------------------------------------------------------------------------------

struct Result {
  Tensor losses;  // a row each
  double divisor;
  Tensor grad_input, grad_weight, grad_bias;
};

// row_grads: the gradient of each row's loss; undefined computes losses alone.
Result run(const Arguments& a, const LossOptions& options, const Tensor& row_grads, const Wanted& wanted) {
  const at::NoGradGuard no_grad;  // with create_graph=True, backward comes here with tensors that require gradients
  const int64_t rows = a.input.size(0), classes = a.weight.size(0);
  const bool gradients = row_grads.defined();
  Result result{at::empty({rows}, a.options()), 0.0, Tensor(), Tensor(), Tensor()};
  if (gradients) {
    const auto made = [&](const Tensor& t) {
      return rows ? at::empty_like(t, a.options()) : at::zeros_like(t, a.options());
    };
    if (wanted.input) result.grad_input = at::empty_like(a.input, a.options());
    if (wanted.weight) result.grad_weight = made(a.weight);
    if (wanted.bias && a.bias.defined()) result.grad_bias = made(a.bias);
  }
  const int64_t chunk = chunk_rows(a.input, classes);
  Tensor buffer = at::empty({std::min(chunk, rows), classes}, a.options());
  Tensor statistics = empty_statistics({std::min(chunk, rows)}, a.input);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const Tensor x = a.input.narrow(0, begin, count);
    Tensor logits = buffer.narrow(0, 0, count);
    make_logits(x, a.weight, a.bias, logits);
    const auto reduce = [&]<typename T>() {
      const CrossEntropyRows<T> in{count,
                                   classes,
                                   logits.const_data_ptr<T>(),
                                   a.target.const_data_ptr<int64_t>() + begin,
                                   nullptr,
                                   static_cast<T>(classes),
                                   options.ignore_index,
                                   static_cast<T>(options.label_smoothing)};
      SoftmaxStatistics<T>* sums = mutable_statistics<T>(statistics);
      cross_entropy_forward<T>(in, result.losses.mutable_data_ptr<T>() + begin, sums);
      if (gradients) {
        cross_entropy_backward<T>(in, sums, row_grads.const_data_ptr<T>() + begin, logits.mutable_data_ptr<T>());
      }
    };
    a.computing == at::kDouble ? reduce.operator()<double>() : reduce.operator()<float>();
    if (gradients) {
      const Tensor grad_x = wanted.input ? result.grad_input.narrow(0, begin, count) : Tensor();
      add_gradients(logits, x, a.weight, begin == 0, grad_x, result.grad_weight, result.grad_bias);
    }
  }
  return result;
}

double divisor(const Arguments& a, const LossOptions& options) {
  return denominator<double>(options, a.target.const_data_ptr<int64_t>(), a.target.numel(), nullptr);
}

Tensor reduce_losses(const Tensor& losses, const LossOptions& options, double divisor, at::ScalarType dtype) {
  if (options.reduction == "none") return losses.to(dtype);
  return (losses.sum(at::kDouble) / divisor).to(dtype);
}

Tensor linear_cross_entropy_cpu(const Tensor& input, const Tensor& weight, const Tensor& target,
                                const OptionalTensor& bias, int64_t ignore_index, c10::string_view reduction,
                                double label_smoothing, bool wide_loss) {
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Arguments a = prepare("linear_cross_entropy", input, weight, target, bias, options);
  return reduce_losses(run(a, options, Tensor(), {}).losses, options, divisor(a, options), loss_type(input, wide_loss));
}

// Gradients as they are kept, undefined where they are not wanted.
std::tuple<Tensor, Tensor, Tensor> gradients_as(at::ScalarType dtype, const Result& result) {
  const auto cast = [&](const Tensor& gradient) { return gradient.defined() ? gradient.to(dtype) : gradient; };
  return {cast(result.grad_input), cast(result.grad_weight), cast(result.grad_bias)};
}

// The loss (mean or sum) and the wanted gradients of input, weight and bias for an incoming gradient of 1.
std::tuple<Tensor, Tensor, Tensor, Tensor> with_gradients_cpu(const Tensor& input, const Tensor& weight,
                                                              const Tensor& target, const OptionalTensor& bias,
                                                              int64_t ignore_index, c10::string_view reduction,
                                                              double label_smoothing, bool wide_loss, bool need_input,
                                                              bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy_with_gradients";
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Arguments a = prepare(op, input, weight, target, bias, options);
  FASTLLM_CHECK(reduction != "none", op, "reduction", "be 'mean' or 'sum'", "'none'");
  const double by = divisor(a, options);
  const Tensor row_grads = at::empty({a.input.size(0)}, a.options()).fill_(1.0 / by);
  const Result result = run(a, options, row_grads, {need_input, need_weight, need_bias});
  const auto [grad_input, grad_weight, grad_bias] = gradients_as(kept_type(input, wide_loss), result);
  return {reduce_losses(result.losses, options, by, loss_type(input, wide_loss)), grad_input, grad_weight, grad_bias};
}

// For reduction="none": everything again, with the rows' incoming gradients.
std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                const Tensor& target, const OptionalTensor& bias, int64_t ignore_index,
                                                double label_smoothing, bool need_input, bool need_weight,
                                                bool need_bias) {
  const char* op = "linear_cross_entropy_backward";
  const LossOptions options{ignore_index, "none", label_smoothing};
  const Arguments a = prepare(op, input, weight, target, bias, options);
  check_row_gradients(op, grad_output, target);
  const Tensor row_grads = grad_output.to(a.computing).contiguous();
  return gradients_as(input.scalar_type(), run(a, options, row_grads, {need_input, need_weight, need_bias}));
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast
// ---------------------------------------------------------------------------------------------------------------------

auto& forward_op() {
  return find_op<"linear_cross_entropy", decltype(linear_cross_entropy_cpu)>();
}

struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& target,
                        const OptionalTensor& bias, int64_t ignore_index, c10::string_view reduction,
                        double label_smoothing, bool wide_loss) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool per_row = reduction == "none";
    ctx->saved_data["per_row"] = per_row;
    if (per_row) {  // any gradient needs the logits, which need all of these
      ctx->save_for_backward({input, weight, target, or_undefined(bias)});
      ctx->saved_data["ignore_index"] = ignore_index;
      ctx->saved_data["label_smoothing"] = label_smoothing;
      return forward_op().call(input, weight, target, bias, ignore_index, reduction, label_smoothing, wide_loss);
    }
    const auto [loss, grad_input, grad_weight, grad_bias] =
        find_op<"linear_cross_entropy_with_gradients", decltype(with_gradients_cpu)>().call(
            input, weight, target, bias, ignore_index, reduction, label_smoothing, wide_loss, wants_gradient(input),
            wants_gradient(weight), wants_gradient(bias));
    ctx->save_for_backward({grad_input, grad_weight, grad_bias});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& grad = grad_outputs[0];
    Tensor grad_input, grad_weight, grad_bias;
    if (ctx->saved_data["per_row"].toBool()) {
      const bool need_bias = saved[3].defined() && ctx->needs_input_grad(3);
      std::tie(grad_input, grad_weight, grad_bias) =
          find_op<"linear_cross_entropy_backward", decltype(backward_cpu)>().call(
              grad, saved[0], saved[1], saved[2], optional(saved[3]), ctx->saved_data["ignore_index"].toInt(),
              ctx->saved_data["label_smoothing"].toDouble(), ctx->needs_input_grad(0), ctx->needs_input_grad(1),
              need_bias);
    } else {  // autograd takes them to their tensors' dtypes
      if (saved[0].defined()) grad_input = saved[0] * grad;
      if (saved[1].defined()) grad_weight = saved[1] * grad;
      if (saved[2].defined()) grad_bias = saved[2] * grad;
    }
    return first_order_only("linear_cross_entropy",
                            {grad_input, grad_weight, Tensor(), grad_bias, Tensor(), Tensor(), Tensor(), Tensor()});
  }
};

Tensor linear_cross_entropy_autograd(const Tensor& input, const Tensor& weight, const Tensor& target,
                                     const OptionalTensor& bias, int64_t ignore_index, c10::string_view reduction,
                                     double label_smoothing, bool wide_loss) {
  const bool needs_grad =
      at::GradMode::is_enabled() && (wants_gradient(input) || wants_gradient(weight) || wants_gradient(bias));
  if (!needs_grad) {  // the gradients would be made in vain
    at::AutoDispatchBelowADInplaceOrView guard;
    return forward_op().call(input, weight, target, bias, ignore_index, reduction, label_smoothing, wide_loss);
  }
  return LinearCrossEntropy::apply(input, weight, target, bias, ignore_index, reduction, label_smoothing, wide_loss);
}

template <c10::DeviceType kDevice>
Tensor linear_cross_entropy_autocast(const Tensor& input, const Tensor& weight, const Tensor& target,
                                     const OptionalTensor& bias, int64_t ignore_index, c10::string_view reduction,
                                     double label_smoothing, bool) {
  const BelowAutocast<kDevice> guard;
  return forward_op().call(autocast<kDevice>(input), autocast<kDevice>(weight), target, autocast<kDevice>(bias),
                           ignore_index, reduction, label_smoothing,
                           /*wide_loss=*/true);  // as torch's autocast gives losses
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias=None, "
      "int ignore_index=-100, str reduction=\"mean\", float label_smoothing=0.0, bool wide_loss=False) -> Tensor");
  m.def(
      "linear_cross_entropy_with_gradients(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, "
      "int ignore_index, str reduction, float label_smoothing, bool wide_loss, bool need_input, bool need_weight, "
      "bool need_bias) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor linear_weight, Tensor target, "
      "Tensor? linear_bias, int ignore_index, float label_smoothing, bool need_input, bool need_weight, "
      "bool need_bias) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy_cpu);
  m.impl("linear_cross_entropy_with_gradients", with_gradients_cpu);
  m.impl("linear_cross_entropy_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy_autograd);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("linear_cross_entropy", linear_cross_entropy_autocast<c10::DeviceType::CUDA>);
}

}  // namespace fastllm
