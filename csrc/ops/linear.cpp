// fastllm::linear and its backward. float32 runs on this project's matrix product, as does bfloat16 where the CPU has
// instructions for it; the other dtypes on torch's.
#include "ops/linear.h"

#include <ATen/ops/linear.h>

#include "cpu/bfloat16_gemm.h"
#include "cpu/gemm.h"

namespace fastllm {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CPU implementation
// ---------------------------------------------------------------------------------------------------------------------

// T is float or c10::BFloat16, in which the bias's gradient is summed in float32.
template <typename T>
Tensor multiply(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  const RowMajor x = rows_of(input), w = rows_of(weight);
  const Tensor b = bias ? bias->contiguous() : Tensor();
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = weight.size(0);
  Tensor output = at::empty(shape, input.options());
  gemm(x.rows(), w.rows(), x.cols(), x.matrix<T>(), w.transposed<T>(), output.mutable_data_ptr<T>(), w.rows(),
       {.bias = bias ? b.const_data_ptr<T>() : nullptr});
  return output;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> multiply_backward(const Tensor& grad_output, const Tensor& input,
                                                     const Tensor& weight, bool need_input, bool need_weight,
                                                     bool need_bias) {
  Tensor grad_input, grad_weight, grad_bias;
  const RowMajor grad = need_bias ? contiguous_rows_of(grad_output) : rows_of(grad_output);
  const RowMajor x = rows_of(input), w = rows_of(weight);
  const int64_t m = x.rows(), n = w.rows(), k = x.cols();
  if (need_input) {
    grad_input = at::empty(input.sizes(), input.options());
    gemm(m, k, n, grad.matrix<T>(), w.matrix<T>(), grad_input.mutable_data_ptr<T>(), k);
  }
  if (need_weight || need_bias) {  // the bias's gradient comes with the weight's, whose product reads all it needs
    Tensor product = at::empty({n, k}, weight.options());
    if (need_bias) grad_bias = at::empty({n}, weight.options().dtype(at::kFloat));
    gemm(n, k, m, grad.transposed<T>(), x.matrix<T>(), product.mutable_data_ptr<T>(), k,
         {.row_sums = need_bias ? grad_bias.mutable_data_ptr<float>() : nullptr});
    if (need_weight) grad_weight = product;
    if (need_bias) grad_bias = grad_bias.to(weight.scalar_type());
  }
  return {grad_input, grad_weight, grad_bias};
}

// Whether bfloat16 runs on this project's product.
bool multiplies_bfloat16(const Tensor& input) {
  return input.scalar_type() == at::kBFloat16 && has_bfloat16_gemm();
}

Tensor linear_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  check_linear("linear", input, weight, bias);
  if (input.scalar_type() == at::kFloat) return multiply<float>(input, weight, bias);
  if (multiplies_bfloat16(input)) return multiply<c10::BFloat16>(input, weight, bias);
  return at::linear(input, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& weight, bool need_input, bool need_weight,
                                                       bool need_bias) {
  check_linear_backward("linear_backward", grad_output, input, weight);
  const auto backward = input.scalar_type() == at::kFloat ? multiply_backward<float>
                        : multiplies_bfloat16(input)      ? multiply_backward<c10::BFloat16>
                                                          : linear_backward_by_torch;
  return backward(grad_output, input, weight, need_input, need_weight, need_bias);
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast
// ---------------------------------------------------------------------------------------------------------------------

Tensor call_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  static auto op = find_op<decltype(linear_cpu)>("fastllm::linear");
  return op.call(input, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> call_linear_backward(const Tensor& grad_output, const Tensor& input,
                                                        const Tensor& weight, bool need_input, bool need_weight,
                                                        bool need_bias) {
  static auto op = find_op<decltype(linear_backward_cpu)>("fastllm::linear_backward");
  return op.call(grad_output, input, weight, need_input, need_weight, need_bias);
}

struct Linear : torch::autograd::Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input, weight});
    ctx->saved_data["has_bias"] = bias.has_value();  // needs_input_grad counts only the tensors that were given
    return call_linear(input, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const bool need_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2);
    const auto [grad_input, grad_weight, grad_bias] = call_linear_backward(
        grad_outputs[0], saved[0], saved[1], ctx->needs_input_grad(0), ctx->needs_input_grad(1), need_bias);
    return first_order_only("linear", {grad_input, grad_weight, grad_bias});
  }
};

Tensor linear_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return Linear::apply(input, weight, bias);
}

template <c10::DeviceType kDevice>
Tensor linear_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  return call_linear(at::autocast::cached_cast(dtype, input, kDevice),
                     at::autocast::cached_cast(dtype, weight, kDevice),
                     at::autocast::cached_cast(dtype, bias, kDevice));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, bool need_input, bool need_weight, "
      "bool need_bias) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("linear", linear_cpu);
  m.impl("linear_backward", linear_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("linear", linear_autograd);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("linear", linear_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("linear", linear_autocast<c10::DeviceType::CUDA>);
}

}  // namespace fastllm
