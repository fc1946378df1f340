// fastllm::dropout_add (which is dropout too, without a residual) and its backward.
#include "ops/dropout_add.h"

#include "cpu/dropout.h"

namespace fastllm {
namespace {

Tensor dropout_add_cpu(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& bias, double p,
                       const OptionalTensor& rng_state) {
  const char* op = residual ? "dropout_add" : "dropout";
  check_dropout_add(op, input, residual, bias);
  const auto dropout = dropout_params(op, p, rng_state, input);
  const Tensor x = input.contiguous(), r = residual ? residual->contiguous() : Tensor();
  const Tensor b = bias ? bias->contiguous() : Tensor();
  const int64_t cols = dropout_row_length(input, bias.has_value());
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    dropout_add_forward<T>(x.numel(), cols, x.const_data_ptr<T>(), residual ? r.const_data_ptr<T>() : nullptr,
                           bias ? b.const_data_ptr<T>() : nullptr, dropout ? &*dropout : nullptr,
                           output.mutable_data_ptr<T>());
  });
  return output;
}

std::tuple<Tensor, Tensor> dropout_add_backward_cpu(const Tensor& grad_output, double p,
                                                    const OptionalTensor& rng_state, bool need_bias) {
  const char* op = "dropout_add_backward";
  check_floating(op, "grad_output", grad_output);
  const auto dropout = dropout_params(op, p, rng_state, grad_output);
  const Tensor grad = grad_output.contiguous();
  const int64_t cols = dropout_row_length(grad, need_bias);
  Tensor grad_input = at::empty_like(grad, at::MemoryFormat::Contiguous);
  Tensor grad_bias = need_bias ? at::empty({grad.size(-1)}, grad.options()) : Tensor();
  dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    dropout_add_backward<T>(grad.numel(), cols, grad.const_data_ptr<T>(), dropout ? &*dropout : nullptr,
                            grad_input.mutable_data_ptr<T>(), need_bias ? grad_bias.mutable_data_ptr<T>() : nullptr);
  });
  return {grad_input, grad_bias};
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd
// ---------------------------------------------------------------------------------------------------------------------

struct DropoutAdd : torch::autograd::Function<DropoutAdd> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& bias, double p, const OptionalTensor& rng_state) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool through_dropout = wants_gradient(input) || wants_gradient(bias);
    ctx->save_for_backward({kept_if(through_dropout, rng_state)});
    ctx->saved_data["p"] = p;
    ctx->saved_data["through_dropout"] = through_dropout;
    ctx->saved_data["need_residual"] = wants_gradient(residual);
    ctx->saved_data["need_bias"] = wants_gradient(bias);
    return find_op<"dropout_add", decltype(dropout_add_cpu)>().call(input, residual, bias, p, rng_state);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    auto& data = ctx->saved_data;
    const Tensor rng_state = ctx->get_saved_variables()[0];
    Tensor grad_input, grad_bias;
    if (data["through_dropout"].toBool()) {
      std::tie(grad_input, grad_bias) = find_op<"dropout_add_backward", decltype(dropout_add_backward_cpu)>().call(
          grad_outputs[0], data["p"].toDouble(), optional(rng_state), data["need_bias"].toBool());
    }
    const Tensor grad_residual = data["need_residual"].toBool() ? grad_outputs[0] : Tensor();
    return first_order_only("dropout_add", {grad_input, grad_residual, grad_bias, Tensor(), Tensor()});
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("dropout_add(Tensor input, Tensor? residual, Tensor? bias, float p, Tensor? rng_state) -> Tensor");
  m.def("dropout_add_backward(Tensor grad_output, float p, Tensor? rng_state, bool need_bias) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("dropout_add", dropout_add_cpu);
  m.impl("dropout_add_backward", dropout_add_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("dropout_add", AutogradKernel<DropoutAdd, decltype(dropout_add_cpu)>::call);
}

}  // namespace fastllm
