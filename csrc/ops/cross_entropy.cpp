// fastllm::cross_entropy and its backward.
//
// Under autocast torch casts logits to float32 and gives a float32 loss. Ours are computed in float32 whatever they
// come in, so wide_loss, which autocast sets, gives the same loss and gradient, and no copy of the logits is made.
#include "ops/cross_entropy.h"

#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/ones_like.h>

#include <numeric>

#include "cpu/cross_entropy.h"
#include "ops/higher_order.h"

namespace fastllm {
namespace {

Logits check(const char* op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
             const LossOptions& options) {
  Logits logits = check_cross_entropy(op, input, target, weight, options);
  check_targets(op, logits.target, logits.matrix.size(1), options.ignore_index);
  return logits;
}

template <typename T>
CrossEntropyRows<T> rows_of(const Logits& logits, const LossOptions& options) {
  using C = Compute<T>;
  const int64_t classes = logits.matrix.size(1);
  const C* weight = logits.weight.defined() ? logits.weight.const_data_ptr<C>() : nullptr;
  C weight_sum = static_cast<C>(classes);
  if (weight) weight_sum = std::accumulate(weight, weight + classes, C(0));
  return {logits.matrix.size(0),
          classes,
          logits.matrix.const_data_ptr<T>(),
          logits.target.const_data_ptr<int64_t>(),
          weight,
          weight_sum,
          options.ignore_index,
          static_cast<C>(options.label_smoothing)};
}

std::tuple<Tensor, Tensor> cross_entropy_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                             int64_t ignore_index, c10::string_view reduction, double label_smoothing,
                                             bool wide_loss) {
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Logits logits = check("cross_entropy", input, target, weight, options);
  const auto computing = input.options().dtype(compute_type(input));
  Tensor rows = at::empty({target.numel()}, computing), statistics = empty_statistics({target.numel()}, input);
  Tensor loss = reduction == "none" ? rows.view(target.sizes()) : at::empty({}, computing);
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    const CrossEntropyRows<T> in = rows_of<T>(logits, options);
    C* row_losses = rows.mutable_data_ptr<C>();
    cross_entropy_forward<T>(in, row_losses, mutable_statistics<C>(statistics));
    if (reduction == "none") return;
    const double total = std::accumulate(row_losses, row_losses + in.rows, 0.0);
    *loss.mutable_data_ptr<C>() = static_cast<C>(total / denominator(options, in.target, in.rows, in.weight));
  });
  return {loss.to(loss_type(input, wide_loss)), statistics};
}

Tensor cross_entropy_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                  const OptionalTensor& weight, const Tensor& statistics, int64_t ignore_index,
                                  c10::string_view reduction, double label_smoothing) {
  const char* op = "cross_entropy_backward";
  const LossOptions options{ignore_index, reduction, label_smoothing};
  const Logits logits = check(op, input, target, weight, options);
  check_cross_entropy_gradient(op, grad_output, target, statistics, options);
  const Tensor grads = grad_output.to(compute_type(input)).reshape({-1}).contiguous();
  const Tensor sums = statistics.contiguous();
  Tensor grad_matrix = at::empty_like(logits.matrix), grad_rows = at::empty({target.numel()}, statistics.options());
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    const CrossEntropyRows<T> in = rows_of<T>(logits, options);
    const double divisor = denominator(options, in.target, in.rows, in.weight);
    const C* grad = grads.const_data_ptr<C>();
    C* per_row = grad_rows.mutable_data_ptr<C>();
    for (int64_t row = 0; row < in.rows; ++row) {
      per_row[row] = reduction == "none" ? grad[row] : static_cast<C>(static_cast<double>(grad[0]) / divisor);
    }
    cross_entropy_backward<T>(in, const_statistics<C>(sums), per_row, grad_matrix.mutable_data_ptr<T>());
  });
  return as_input(grad_matrix, input, target);
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast
// ---------------------------------------------------------------------------------------------------------------------

auto& forward_op() {
  return find_op<"cross_entropy", decltype(cross_entropy_cpu)>();
}

// What cross_entropy_backward gives, for gradients of any order.
Tensor gradient_of_gradients(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                             const OptionalTensor& weight, int64_t ignore_index, c10::string_view reduction,
                             double label_smoothing) {
  const int64_t class_dim = input.dim() == 1 ? 0 : 1;
  const Tensor logits = computed(input).movedim(class_dim, -1);  // (.., V)
  const Tensor counts = target.ne(ignore_index).unsqueeze(-1);   // (.., 1)
  const Tensor index = target.unsqueeze(-1).masked_fill(counts.logical_not(), 0);
  const Tensor ones = at::ones_like(logits), weights = weight ? ones * weight->to(logits.scalar_type()) : ones;
  const Tensor on_target = at::zeros_like(logits).scatter(-1, index, 1.0) * weights * counts;
  const Tensor smooth = weights / ones.sum(-1, /*keepdim=*/true);
  Tensor rows = grad_output.to(logits.scalar_type());
  if (reduction == "mean") rows = rows / on_target.sum();
  if (reduction == "none") rows = rows.unsqueeze(-1);
  const Tensor kept = (on_target * (1 - label_smoothing) + smooth * label_smoothing) * rows.neg();
  const Tensor grad = kept.masked_fill(counts.logical_not(), 0);
  const Tensor log_probabilities = at::log_softmax(logits, -1);
  return at::_log_softmax_backward_data(grad, log_probabilities, -1, logits.scalar_type())
      .movedim(-1, class_dim)
      .to(input.scalar_type());
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                               const OptionalTensor& weight, int64_t ignore_index, c10::string_view reduction,
                               double label_smoothing, bool wide_loss) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [loss, statistics] =
        forward_op().call(input, target, weight, ignore_index, reduction, label_smoothing, wide_loss);
    ctx->save_for_backward({input, target, or_undefined(weight), statistics});
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["reduction"] = std::string(reduction);
    ctx->saved_data["label_smoothing"] = label_smoothing;
    ctx->mark_non_differentiable({statistics});
    return {loss, statistics};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t ignore_index = ctx->saved_data["ignore_index"].toInt();
    const std::string& reduction = ctx->saved_data["reduction"].toStringRef();
    const double label_smoothing = ctx->saved_data["label_smoothing"].toDouble();
    const Tensor grad = higher_order() ? gradient_of_gradients(grad_outputs[0], saved[0], saved[1], optional(saved[2]),
                                                               ignore_index, reduction, label_smoothing)
                                       : find_op<"cross_entropy_backward", decltype(cross_entropy_backward_cpu)>().call(
                                             grad_outputs[0], saved[0], saved[1], optional(saved[2]), saved[3],
                                             ignore_index, reduction, label_smoothing);
    return {grad, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> cross_entropy_autograd(const Tensor& input, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t ignore_index,
                                                  c10::string_view reduction, double label_smoothing, bool wide_loss) {
  FASTLLM_CHECK(!at::GradMode::is_enabled() || !wants_gradient(weight), "cross_entropy", "weight",
                "not require a gradient: the weights of classes are constants", "one that does");
  return AutogradKernel<CrossEntropy, decltype(cross_entropy_cpu)>::call(input, target, weight, ignore_index, reduction,
                                                                         label_smoothing, wide_loss);
}

template <c10::DeviceType kDevice>
std::tuple<Tensor, Tensor> cross_entropy_autocast(const Tensor& input, const Tensor& target,
                                                  const OptionalTensor& weight, int64_t ignore_index,
                                                  c10::string_view reduction, double label_smoothing, bool) {
  const BelowAutocast<kDevice> guard;
  return forward_op().call(input, target, weight, ignore_index, reduction, label_smoothing, /*wide_loss=*/true);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight=None, int ignore_index=-100, str reduction=\"mean\", "
      "float label_smoothing=0.0, bool wide_loss=False) -> (Tensor, Tensor)");
  m.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor statistics, "
      "int ignore_index, str reduction, float label_smoothing) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("cross_entropy", cross_entropy_cpu);
  m.impl("cross_entropy_backward", cross_entropy_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("cross_entropy", cross_entropy_autograd);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("cross_entropy", cross_entropy_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("cross_entropy", cross_entropy_autocast<c10::DeviceType::CUDA>);
}

}  // namespace fastllm
