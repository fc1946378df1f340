// fastllm::swiglu and its backward.
#include "ops/swiglu.h"

#include "cpu/swiglu.h"

namespace fastllm {
namespace {

template <typename T>
Swiglu<T> arguments(const SwigluInput& in) {
  return {in.rows,          in.cols,       static_cast<const T*>(in.gate()), static_cast<const T*>(in.up()),
          in.gate_stride(), in.up_stride()};
}

Tensor swiglu_cpu(const Tensor& input, const OptionalTensor& up) {
  const SwigluInput in = check_swiglu("swiglu", input, up);
  Tensor output = at::empty(swiglu_shape(input, in.cols), input.options());
  dispatch_floating(input.scalar_type(),
                    [&]<typename T>() { swiglu_forward<T>(arguments<T>(in), output.mutable_data_ptr<T>()); });
  return output;
}

std::tuple<Tensor, Tensor> swiglu_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                               const OptionalTensor& up) {
  const SwigluInput in = check_swiglu("swiglu_backward", input, up);
  check_swiglu_gradient("swiglu_backward", grad_output, input, in.cols);
  const Tensor grad = grad_output.contiguous();
  const SwigluGradients out(in);
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    swiglu_backward<T>(arguments<T>(in), grad.const_data_ptr<T>(), static_cast<T*>(out.gate_data()),
                       static_cast<T*>(out.up_data()), out.stride());
  });
  return {out.input, out.up};
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd
// ---------------------------------------------------------------------------------------------------------------------

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& up) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input, kept_if(wants_gradient(input), up)});
    ctx->saved_data["packed"] = !up.has_value();
    return find_op<"swiglu", decltype(swiglu_cpu)>().call(input, up);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    // The gradient of `up` does not look at it: where it alone is wanted, the gate stands in.
    const Tensor& up = saved[1].defined() ? saved[1] : saved[0];
    const auto [grad_input, grad_up] = find_op<"swiglu_backward", decltype(swiglu_backward_cpu)>().call(
        grad_outputs[0], saved[0], ctx->saved_data["packed"].toBool() ? std::nullopt : OptionalTensor(up));
    return first_order_only("swiglu", {grad_input, grad_up});
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("swiglu(Tensor input, Tensor? up=None) -> Tensor");
  m.def("swiglu_backward(Tensor grad_output, Tensor input, Tensor? up) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("swiglu", swiglu_cpu);
  m.impl("swiglu_backward", swiglu_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("swiglu", AutogradKernel<SwigluFunction, decltype(swiglu_cpu)>::call);
}

}  // namespace fastllm
