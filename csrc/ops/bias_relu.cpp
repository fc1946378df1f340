// fastllm::bias_relu and its backward.
//
// An output is above 0 exactly where the gradient passes: where input + bias is, and dropout kept it. Nothing on the
// way can round it to 0, as a sum of two floating numbers does not underflow and dropout scales up. So backward reads
// the output alone, which whatever comes next mostly keeps too: neither the input nor the mask is kept or made again.
#include "ops/bias_relu.h"

#include <ATen/ops/threshold_backward.h>

#include "cpu/bias_relu.h"
#include "ops/higher_order.h"

namespace fastllm {
namespace {

Tensor bias_relu_cpu(const Tensor& input, const OptionalTensor& bias, double p, const OptionalTensor& rng_state) {
  const char* op = "bias_relu";
  check_bias_relu(op, input, bias);
  const auto dropout = dropout_params(op, p, rng_state, input);
  const Tensor x = input.contiguous(), b = bias ? bias->contiguous() : Tensor();
  const int64_t cols = dropout_row_length(input, bias.has_value());
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    bias_relu_forward<T>(x.numel(), cols, x.const_data_ptr<T>(), bias ? b.const_data_ptr<T>() : nullptr,
                         dropout ? &*dropout : nullptr, output.mutable_data_ptr<T>());
  });
  return output;
}

std::tuple<Tensor, Tensor> bias_relu_backward_cpu(const Tensor& grad_output, const Tensor& output, double p,
                                                  bool need_bias) {
  check_bias_relu_backward("bias_relu_backward", grad_output, output, p, need_bias);
  const Tensor grad = grad_output.contiguous(), y = output.contiguous();
  Tensor grad_input = at::empty_like(grad, at::MemoryFormat::Contiguous);
  Tensor grad_bias = need_bias ? at::empty({grad.size(-1)}, grad.options()) : Tensor();
  dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    bias_relu_backward<T>(grad.numel(), dropout_row_length(grad, need_bias), grad.const_data_ptr<T>(),
                          y.const_data_ptr<T>(), DropoutParams::make(p, 0, 0).scale, grad_input.mutable_data_ptr<T>(),
                          need_bias ? grad_bias.mutable_data_ptr<T>() : nullptr);
  });
  return {grad_input, grad_bias};
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd
// ---------------------------------------------------------------------------------------------------------------------

struct BiasRelu : torch::autograd::Function<BiasRelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& bias, double p,
                        const OptionalTensor& rng_state) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor output = find_op<"bias_relu", decltype(bias_relu_cpu)>().call(input, bias, p, rng_state);
    if (wants_gradient(input) || wants_gradient(bias)) ctx->save_for_backward({output});
    ctx->saved_data["p"] = rng_state ? p : 0.0;
    ctx->saved_data["need_bias"] = wants_gradient(bias);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    auto& data = ctx->saved_data;
    const Tensor &grad_output = grad_outputs[0], output = ctx->get_saved_variables()[0];
    const double p = data["p"].toDouble();
    const bool need_bias = data["need_bias"].toBool();
    if (higher_order()) {
      const double scale = DropoutParams::make(p, 0, 0).scale;
      const Tensor grad = at::threshold_backward(computed(grad_output) * scale, computed(output), 0);
      const at::ScalarType dtype = output.scalar_type();
      return {grad.to(dtype), need_bias ? sum_leading(grad).to(dtype) : Tensor(), Tensor(), Tensor()};
    }
    const auto [grad_input, grad_bias] =
        find_op<"bias_relu_backward", decltype(bias_relu_backward_cpu)>().call(grad_output, output, p, need_bias);
    return {grad_input, grad_bias, Tensor(), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("bias_relu(Tensor input, Tensor? bias, float p, Tensor? rng_state) -> Tensor");
  m.def("bias_relu_backward(Tensor grad_output, Tensor output, float p, bool need_bias) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("bias_relu", bias_relu_cpu);
  m.impl("bias_relu_backward", bias_relu_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("bias_relu", AutogradKernel<BiasRelu, decltype(bias_relu_cpu)>::call);
}

}  // namespace fastllm
