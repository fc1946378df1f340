// fastllm::gelu, fastllm::bias_gelu and their backward.
#include "ops/gelu.h"

#include <ATen/ops/gelu_backward.h>

#include "ops/higher_order.h"

namespace fastllm {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CPU implementation
// ---------------------------------------------------------------------------------------------------------------------

Tensor forward_cpu(const char* op, const Tensor& input, const OptionalTensor& bias, c10::string_view approximate) {
  const GeluShape shape = check_gelu(op, input, bias, approximate);
  const Tensor x = input.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    gelu_forward<T>(shape, x.const_data_ptr<T>(), bias ? b.const_data_ptr<T>() : nullptr, output.mutable_data_ptr<T>());
  });
  return output;
}

std::tuple<Tensor, Tensor> backward_cpu(const char* op, const Tensor& grad_output, const Tensor& input,
                                        const OptionalTensor& bias, c10::string_view approximate) {
  const GeluShape shape = check_gelu_backward(op, grad_output, input, bias, approximate);
  const Tensor grad = grad_output.contiguous(), x = input.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Tensor grad_input = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor grad_bias = bias ? at::empty_like(b) : Tensor();
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    gelu_backward<T>(shape, grad.const_data_ptr<T>(), x.const_data_ptr<T>(), bias ? b.const_data_ptr<T>() : nullptr,
                     grad_input.mutable_data_ptr<T>(), bias ? grad_bias.mutable_data_ptr<T>() : nullptr);
  });
  return {grad_input, grad_bias};
}

Tensor gelu_cpu(const Tensor& input, c10::string_view approximate) {
  return forward_cpu("gelu", input, std::nullopt, approximate);
}

Tensor gelu_backward_cpu(const Tensor& grad_output, const Tensor& input, c10::string_view approximate) {
  return std::get<0>(backward_cpu("gelu_backward", grad_output, input, std::nullopt, approximate));
}

Tensor bias_gelu_cpu(const Tensor& input, const Tensor& bias, c10::string_view approximate) {
  return forward_cpu("bias_gelu", input, bias, approximate);
}

std::tuple<Tensor, Tensor> bias_gelu_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& bias,
                                                  c10::string_view approximate) {
  return backward_cpu("bias_gelu_backward", grad_output, input, bias, approximate);
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd
// ---------------------------------------------------------------------------------------------------------------------

struct Gelu : torch::autograd::Function<Gelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, c10::string_view approximate) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input});
    ctx->saved_data["approximate"] = std::string(approximate);
    return find_op<"gelu", decltype(gelu_cpu)>().call(input, approximate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const Tensor input = ctx->get_saved_variables()[0];
    const std::string& approximate = ctx->saved_data["approximate"].toStringRef();
    if (higher_order()) return {at::gelu_backward(grad_outputs[0], input, approximate), Tensor()};
    return {find_op<"gelu_backward", decltype(gelu_backward_cpu)>().call(grad_outputs[0], input, approximate),
            Tensor()};
  }
};

struct BiasGelu : torch::autograd::Function<BiasGelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& bias, c10::string_view approximate) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input, bias});
    ctx->saved_data["approximate"] = std::string(approximate);
    return find_op<"bias_gelu", decltype(bias_gelu_cpu)>().call(input, bias, approximate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad_output = grad_outputs[0], &input = saved[0], &bias = saved[1];
    const std::string& approximate = ctx->saved_data["approximate"].toStringRef();
    if (higher_order()) {
      const Tensor grad = at::gelu_backward(computed(grad_output), computed(input) + computed(bias), approximate);
      return {grad.to(input.scalar_type()), sum_leading(grad).to(bias.scalar_type()), Tensor()};
    }
    const auto [grad_input, grad_bias] =
        find_op<"bias_gelu_backward", decltype(bias_gelu_backward_cpu)>().call(grad_output, input, bias, approximate);
    return {grad_input, grad_bias, Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("gelu(Tensor input, str approximate=\"none\") -> Tensor");
  m.def("gelu_backward(Tensor grad_output, Tensor input, str approximate) -> Tensor");
  m.def("bias_gelu(Tensor input, Tensor bias, str approximate=\"none\") -> Tensor");
  m.def("bias_gelu_backward(Tensor grad_output, Tensor input, Tensor bias, str approximate) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("gelu", gelu_cpu);
  m.impl("gelu_backward", gelu_backward_cpu);
  m.impl("bias_gelu", bias_gelu_cpu);
  m.impl("bias_gelu_backward", bias_gelu_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("gelu", AutogradKernel<Gelu, decltype(gelu_cpu)>::call);
  m.impl("bias_gelu", AutogradKernel<BiasGelu, decltype(bias_gelu_cpu)>::call);
}

}  // namespace fastllm
