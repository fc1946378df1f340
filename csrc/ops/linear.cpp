// fastllm::linear and its backward. float32 runs on this project's matrix product, as does bfloat16 where the CPU has
// instructions for it; the other dtypes on torch's.
#include "ops/linear.h"

#include <ATen/ops/linear.h>

#include "cpu/bfloat16_gemm.h"
#include "cpu/gemm.h"
#include "ops/higher_order.h"

namespace fastllm {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CPU implementation
// ---------------------------------------------------------------------------------------------------------------------

// T is float or c10::BFloat16.
template <typename T>
Tensor multiply(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  const RowMajor x = rows_of(input), w = rows_of(weight);
  const Tensor b = bias ? bias->contiguous() : Tensor();
  Tensor output = at::empty(with_features(input, weight.size(0)), input.options());
  gemm(x.rows(), w.rows(), x.cols(), x.matrix<T>(), w.transposed<T>(), output.mutable_data_ptr<T>(), w.rows(),
       {.bias = bias ? b.const_data_ptr<T>() : nullptr});
  return output;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> multiply_backward(const Tensor& grad_output, const OptionalTensor& input,
                                                     const OptionalTensor& weight, bool need_bias) {
  Tensor grad_input, grad_weight, grad_bias;
  const RowMajor grad = need_bias ? contiguous_rows_of(grad_output) : rows_of(grad_output);
  const int64_t m = grad.rows(), n = grad.cols();
  if (weight) {
    const int64_t k = weight->size(1);
    grad_input = at::empty(with_features(grad_output, k), grad_output.options());
    gemm(m, k, n, grad.matrix<T>(), rows_of(*weight).matrix<T>(), grad_input.mutable_data_ptr<T>(), k);
  }
  if (input) {
    const int64_t k = input->size(-1);
    grad_weight = at::empty({n, k}, grad_output.options());
    if (need_bias) grad_bias = at::empty({n}, grad_output.options().dtype(at::kFloat));
    // The bias's gradient comes with the weight's, whose product reads all it needs.
    gemm(n, k, m, grad.transposed<T>(), rows_of(*input).matrix<T>(), grad_weight.mutable_data_ptr<T>(), k,
         {.row_sums = need_bias ? grad_bias.mutable_data_ptr<float>() : nullptr});
    if (need_bias) grad_bias = grad_bias.to(grad_output.scalar_type());
  } else if (need_bias) {
    if constexpr (std::is_same_v<T, float>) {
      grad_bias = at::empty({n}, grad_output.options());
      sum_columns(grad, grad_bias);
    } else {
      grad_bias = at::sum(flatten_rows(grad_output), 0);
    }
  }
  return {grad_input, grad_weight, grad_bias};
}

Tensor linear_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  check_linear("linear", input, weight, bias);
  if (input.scalar_type() == at::kFloat) return multiply<float>(input, weight, bias);
  if (multiplies_bfloat16(input)) return multiply<c10::BFloat16>(input, weight, bias);
  return at::linear(input, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cpu(const Tensor& grad_output, const OptionalTensor& input,
                                                       const OptionalTensor& weight, bool need_bias) {
  check_linear_backward("linear_backward", grad_output, input, weight);
  const auto backward = grad_output.scalar_type() == at::kFloat ? multiply_backward<float>
                        : multiplies_bfloat16(grad_output)      ? multiply_backward<c10::BFloat16>
                                                                : linear_backward_by_torch;
  return backward(grad_output, input, weight, need_bias);
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast
// ---------------------------------------------------------------------------------------------------------------------

auto& forward_op() {
  return find_op<"linear", decltype(linear_cpu)>();
}

// What linear_backward gives, for gradients of any order: its products are linear maps too.
std::tuple<Tensor, Tensor, Tensor> gradients_of_gradients(const Tensor& grad_output, const OptionalTensor& input,
                                                          const OptionalTensor& weight, bool need_bias) {
  const c10::impl::ExcludeDispatchKeyGuard below_autocast(c10::autocast_dispatch_keyset);
  const Tensor grad = as_rows(grad_output);  // (M, N)
  Tensor grad_input, grad_weight, grad_bias;
  if (weight) grad_input = forward_op().call(grad_output, weight->t(), std::nullopt);
  if (input) grad_weight = forward_op().call(grad.t(), as_rows(*input).t(), std::nullopt);
  if (need_bias) grad_bias = at::sum(grad, 0);
  return {grad_input, grad_weight, grad_bias};
}

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({kept_if(wants_gradient(weight), input), kept_if(wants_gradient(input), weight)});
    ctx->saved_data["has_bias"] = bias.has_value();  // needs_input_grad counts only the tensors that were given
    return forward_op().call(input, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const bool need_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2);
    const OptionalTensor input = ctx->needs_input_grad(1) ? optional(saved[0]) : std::nullopt;
    const OptionalTensor weight = ctx->needs_input_grad(0) ? optional(saved[1]) : std::nullopt;
    const auto [grad_input, grad_weight, grad_bias] =
        higher_order() ? gradients_of_gradients(grad_outputs[0], input, weight, need_bias)
                       : find_op<"linear_backward", decltype(linear_backward_cpu)>().call(grad_outputs[0], input,
                                                                                          weight, need_bias);
    return {grad_input, grad_weight, grad_bias};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def(
      "linear_backward(Tensor grad_output, Tensor? input, Tensor? weight, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("linear", linear_cpu);
  m.impl("linear_backward", linear_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("linear", AutogradKernel<Linear, decltype(linear_cpu)>::call);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("linear", AutocastKernel<"linear", decltype(linear_cpu), c10::DeviceType::CPU, 3>::call);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("linear", AutocastKernel<"linear", decltype(linear_cpu), c10::DeviceType::CUDA, 3>::call);
}

}  // namespace fastllm
