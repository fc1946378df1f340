// fastllm::feed_forward and its backward. float32 runs fused; the other dtypes on torch's products and gelu's kernel.
#include "cpu/feed_forward.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "cpu/gelu.h"
#include "ops/matrix.h"
#include "ops/op.h"

namespace fastllm {
namespace {

// M rows, C channels in, F hidden, O out

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// ---------------------------------------------------------------------------------------------------------------------
// Checks and CPU implementation
// ---------------------------------------------------------------------------------------------------------------------

void check(const char* op, const Tensor& input, const Tensor& expand, const OptionalTensor& expand_bias,
           const Tensor& contract, const OptionalTensor& contract_bias, c10::string_view approximate) {
  check_floating(op, "input", input);
  FASTLLM_CHECK(input.dim() >= 1, op, "input", "have at least one dimension", "a scalar");
  FASTLLM_CHECK(approximate == "none" || approximate == "tanh", op, "approximate", "be 'none' or 'tanh'", "'",
                approximate, "'");
  const auto check_like_input = [&](const char* argument, const Tensor& t) {
    check_same_device(op, argument, t, "input", input);
    check_same_dtype(op, argument, t, "input", input);
  };
  check_like_input("expand_weight", expand);
  check_like_input("contract_weight", contract);
  FASTLLM_CHECK(expand.dim() == 2 && expand.size(1) == input.size(-1), op, "expand_weight",
                c10::str("have shape (hidden, ", input.size(-1), "), the size of input's last dimension"),
                expand.sizes());
  FASTLLM_CHECK(contract.dim() == 2 && contract.size(1) == expand.size(0), op, "contract_weight",
                c10::str("have shape (out, ", expand.size(0), "), the hidden size of expand_weight"), contract.sizes());
  if (expand_bias) {
    check_like_input("expand_bias", *expand_bias);
    check_shape(op, "expand_bias", *expand_bias, {expand.size(0)});
  }
  if (contract_bias) {
    check_like_input("contract_bias", *contract_bias);
    check_shape(op, "contract_bias", *contract_bias, {contract.size(0)});
  }
}

std::vector<int64_t> with_last(const Tensor& input, int64_t size) {
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = size;
  return shape;
}

// input and weights as the kernel's operands; holds the copies that odd strides need.
struct Matrices {
  RowMajor input, expand, contract;
  bool tanh;

  FeedForward net() const {
    return {input.rows(), input.cols(),   expand.rows(),       contract.rows(),
            tanh,         input.matrix(), expand.transposed(), contract.transposed()};
  }
};

Tensor gelu_of(const Tensor& pre, bool tanh) {
  Tensor hidden = at::empty_like(pre);
  dispatch_floating(pre.scalar_type(), [&]<typename T>() {
    gelu_forward<T>({pre.numel(), 4096, tanh}, pre.const_data_ptr<T>(), nullptr, hidden.mutable_data_ptr<T>());
  });
  return hidden;
}

std::tuple<Tensor, Tensor> feed_forward_cpu(const Tensor& input, const Tensor& expand_weight,
                                            const OptionalTensor& expand_bias, const Tensor& contract_weight,
                                            const OptionalTensor& contract_bias, c10::string_view approximate) {
  check("feed_forward", input, expand_weight, expand_bias, contract_weight, contract_bias, approximate);
  const bool tanh = approximate == "tanh";
  if (input.scalar_type() != at::kFloat) {
    const Tensor pre = at::linear(input, expand_weight, expand_bias).contiguous();
    return {at::linear(gelu_of(pre, tanh), contract_weight, contract_bias), pre};
  }
  const Matrices matrices{rows_of(input), rows_of(expand_weight), rows_of(contract_weight), tanh};
  const Tensor b1 = expand_bias ? expand_bias->contiguous() : Tensor();
  const Tensor b2 = contract_bias ? contract_bias->contiguous() : Tensor();
  Tensor pre = at::empty(with_last(input, expand_weight.size(0)), input.options()), hidden = at::empty_like(pre);
  Tensor output = at::empty(with_last(input, contract_weight.size(0)), input.options());
  feed_forward(matrices.net(), b1.defined() ? b1.const_data_ptr<float>() : nullptr,
               b2.defined() ? b2.const_data_ptr<float>() : nullptr, pre.mutable_data_ptr<float>(),
               hidden.mutable_data_ptr<float>(), output.mutable_data_ptr<float>());
  return {output, pre};
}

// `need`: of input, expand_weight, expand_bias, contract_weight, contract_bias.
Gradients feed_forward_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& pre,
                                    const Tensor& expand_weight, const Tensor& contract_weight,
                                    c10::string_view approximate, std::array<bool, 5> need) {
  const char* op = "feed_forward_backward";
  check(op, input, expand_weight, std::nullopt, contract_weight, std::nullopt, approximate);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_same_dtype(op, "pre", pre, "input", input);
  check_shape(op, "grad_output", grad_output, with_last(input, contract_weight.size(0)));
  check_shape(op, "pre", pre, with_last(input, expand_weight.size(0)));
  const bool tanh = approximate == "tanh";
  const Tensor p = pre.contiguous();
  Tensor grad_input, grad_expand, grad_expand_bias, grad_contract, grad_contract_bias;
  if (input.scalar_type() != at::kFloat) {
    const Tensor grad = flatten_rows(grad_output), x = flatten_rows(input);
    const Tensor grad_hidden = at::mm(grad, contract_weight);
    Tensor grad_pre = at::empty_like(grad_hidden);
    dispatch_floating(p.scalar_type(), [&]<typename T>() {
      gelu_backward<T>({p.numel(), 4096, tanh}, grad_hidden.const_data_ptr<T>(), p.const_data_ptr<T>(), nullptr,
                       grad_pre.mutable_data_ptr<T>(), nullptr);
    });
    if (need[0]) grad_input = at::mm(grad_pre, expand_weight).view(input.sizes());
    if (need[1]) grad_expand = at::mm(grad_pre.t(), x);
    if (need[2]) grad_expand_bias = at::sum(grad_pre, 0);
    if (need[3]) grad_contract = at::mm(grad.t(), flatten_rows(gelu_of(p, tanh)));
    if (need[4]) grad_contract_bias = at::sum(grad, 0);
    return {grad_input, grad_expand, grad_expand_bias, grad_contract, grad_contract_bias};
  }
  const Matrices matrices{rows_of(input), rows_of(expand_weight), rows_of(contract_weight), tanh};
  const RowMajor grad = need[4] ? contiguous_rows_of(grad_output) : rows_of(grad_output);
  FeedForwardGradients gradients{};
  gradients.grad_output = grad.matrix();
  const auto make = [&](bool wanted, at::IntArrayRef shape, Tensor& tensor, float*& data) {
    if (!wanted) return;
    tensor = at::empty(shape, input.options());
    data = tensor.mutable_data_ptr<float>();
  };
  make(need[0], input.sizes(), grad_input, gradients.input);
  make(need[1] || need[2], expand_weight.sizes(), grad_expand, gradients.expand);
  make(need[2], {expand_weight.size(0)}, grad_expand_bias, gradients.expand_bias);
  make(need[3] || need[4], contract_weight.sizes(), grad_contract, gradients.contract);
  make(need[4], {contract_weight.size(0)}, grad_contract_bias, gradients.contract_bias);
  Tensor hidden = at::empty_like(p), grad_pre = at::empty_like(p);
  feed_forward_backward(matrices.net(), p.const_data_ptr<float>(), gradients, hidden.mutable_data_ptr<float>(),
                        grad_pre.mutable_data_ptr<float>());
  if (!need[1]) grad_expand = Tensor();
  if (!need[3]) grad_contract = Tensor();
  return {grad_input, grad_expand, grad_expand_bias, grad_contract, grad_contract_bias};
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd and autocast
// ---------------------------------------------------------------------------------------------------------------------

struct FeedForwardFunction : torch::autograd::Function<FeedForwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& expand_weight,
                               const OptionalTensor& expand_bias, const Tensor& contract_weight,
                               const OptionalTensor& contract_bias, c10::string_view approximate) {
    static auto op = find_op<decltype(feed_forward_cpu)>("fastllm::feed_forward");
    const auto wanted = [](const OptionalTensor& t) { return t.has_value() && t->requires_grad(); };
    ctx->saved_data["need"] = c10::List<bool>(
        {wanted(input), wanted(expand_weight), wanted(expand_bias), wanted(contract_weight), wanted(contract_bias)});
    ctx->saved_data["approximate"] = std::string(approximate);
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, pre] = op.call(input, expand_weight, expand_bias, contract_weight, contract_bias, approximate);
    ctx->save_for_backward({input, pre, expand_weight, contract_weight});
    ctx->mark_non_differentiable({pre});
    return {output, pre};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static auto op = find_op<decltype(feed_forward_backward_cpu)>("fastllm::feed_forward_backward");
    const variable_list s = ctx->get_saved_variables();
    std::array<bool, 5> need;
    for (size_t i = 0; i < need.size(); ++i) need[i] = ctx->saved_data["need"].toBoolList().get(i);
    const auto [input, expand, expand_bias, contract, contract_bias] =
        op.call(grads[0], s[0], s[1], s[2], s[3], ctx->saved_data["approximate"].toStringRef(), need);
    return first_order_only("feed_forward", {input, expand, expand_bias, contract, contract_bias, Tensor()});
  }
};

std::tuple<Tensor, Tensor> feed_forward_autograd(const Tensor& input, const Tensor& expand_weight,
                                                 const OptionalTensor& expand_bias, const Tensor& contract_weight,
                                                 const OptionalTensor& contract_bias, c10::string_view approximate) {
  const variable_list out =
      FeedForwardFunction::apply(input, expand_weight, expand_bias, contract_weight, contract_bias, approximate);
  return {out[0], out[1]};
}

template <c10::DeviceType kDevice>
std::tuple<Tensor, Tensor> feed_forward_autocast(const Tensor& input, const Tensor& expand_weight,
                                                 const OptionalTensor& expand_bias, const Tensor& contract_weight,
                                                 const OptionalTensor& contract_bias, c10::string_view approximate) {
  static auto op = find_op<decltype(feed_forward_cpu)>("fastllm::feed_forward");
  c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const auto& t) { return at::autocast::cached_cast(dtype, t, kDevice); };
  return op.call(cast(input), cast(expand_weight), cast(expand_bias), cast(contract_weight), cast(contract_bias),
                 approximate);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "feed_forward(Tensor input, Tensor expand_weight, Tensor? expand_bias, Tensor contract_weight, "
      "Tensor? contract_bias, str approximate) -> (Tensor, Tensor)");
  m.def(
      "feed_forward_backward(Tensor grad_output, Tensor input, Tensor pre, Tensor expand_weight, "
      "Tensor contract_weight, str approximate, bool[5] need) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("feed_forward", feed_forward_cpu);
  m.impl("feed_forward_backward", feed_forward_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("feed_forward", feed_forward_autograd);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCPU, m) {
  m.impl("feed_forward", feed_forward_autocast<c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fastllm, AutocastCUDA, m) {
  m.impl("feed_forward", feed_forward_autocast<c10::DeviceType::CUDA>);
}

}  // namespace fastllm
