// fastllm::swiglu and its backward.
#include "ops/swiglu.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>

#include "cpu/swiglu.h"
#include "ops/higher_order.h"

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

// What swiglu_backward gives, for gradients of any order.
std::tuple<Tensor, Tensor> gradients_of_gradients(const Tensor& grad_output, const Tensor& input,
                                                  const OptionalTensor& up) {
  const Tensor grad = computed(grad_output), x = computed(input);
  const std::vector<Tensor> halves = up ? std::vector<Tensor>{x, computed(*up)} : x.chunk(2, -1);
  const Tensor sigmoid = at::sigmoid(halves[0]), silu = halves[0] * sigmoid;
  const Tensor grad_gate = grad * halves[1] * (sigmoid + silu * (1 - sigmoid)), grad_up = grad * silu;
  if (up) return {grad_gate.to(input.scalar_type()), grad_up.to(input.scalar_type())};
  return {at::cat({grad_gate, grad_up}, -1).to(input.scalar_type()), Tensor()};
}

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
    const OptionalTensor given = ctx->saved_data["packed"].toBool() ? std::nullopt : OptionalTensor(up);
    const auto [grad_input, grad_up] =
        higher_order()
            ? gradients_of_gradients(grad_outputs[0], saved[0], given)
            : find_op<"swiglu_backward", decltype(swiglu_backward_cpu)>().call(grad_outputs[0], saved[0], given);
    return {grad_input, grad_up};
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
