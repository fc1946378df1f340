// fastllm::softmax and its backward.
#include "ops/softmax.h"

#include <ATen/ops/_softmax_backward_data.h>

#include "cpu/softmax.h"
#include "ops/higher_order.h"

namespace fastllm {
namespace {

Tensor softmax_cpu(const Tensor& input, int64_t dim) {
  const SoftmaxShape shape = check_softmax("softmax", input, dim);
  const Tensor x = input.contiguous();
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  if (x.numel() == 0) return output;
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    softmax_forward<T>(shape.outer, shape.size, shape.inner, x.const_data_ptr<T>(), output.mutable_data_ptr<T>());
  });
  return output;
}

Tensor softmax_backward_cpu(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  const SoftmaxShape shape = check_softmax_backward("softmax_backward", grad_output, output, dim);
  const Tensor grad = grad_output.contiguous(), y = output.contiguous();
  Tensor grad_input = at::empty_like(y, at::MemoryFormat::Contiguous);
  if (y.numel() == 0) return grad_input;
  dispatch_floating(y.scalar_type(), [&]<typename T>() {
    softmax_backward<T>(shape.outer, shape.size, shape.inner, grad.const_data_ptr<T>(), y.const_data_ptr<T>(),
                        grad_input.mutable_data_ptr<T>());
  });
  return grad_input;
}

struct Softmax : torch::autograd::Function<Softmax> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t dim) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor output = find_op<"softmax", decltype(softmax_cpu)>().call(input, dim);
    ctx->save_for_backward({output});
    ctx->saved_data["dim"] = dim;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor output = ctx->get_saved_variables()[0];
    const int64_t dim = ctx->saved_data["dim"].toInt();
    if (higher_order()) return {at::_softmax_backward_data(grads[0], output, dim, output.scalar_type()), Tensor()};
    return {find_op<"softmax_backward", decltype(softmax_backward_cpu)>().call(grads[0], output, dim), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("softmax(Tensor input, int dim) -> Tensor");
  m.def("softmax_backward(Tensor grad_output, Tensor output, int dim) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("softmax", softmax_cpu);
  m.impl("softmax_backward", softmax_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("softmax", AutogradKernel<Softmax, decltype(softmax_cpu)>::call);
}

}  // namespace fastllm
