// fastllm::layer_norm, rms_norm, dropout_add_layer_norm, dropout_add_rms_norm and their backward: one family over one
// pair of kernels.
#include "ops/norm.h"

#include <ATen/ops/rsqrt.h>

#include <array>

#include "cpu/norm.h"
#include "ops/dropout.h"
#include "ops/higher_order.h"

namespace fastllm {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CPU implementation
// ---------------------------------------------------------------------------------------------------------------------

// Parameters are small: kernels compute with them in the compute type.
Tensor parameter(const OptionalTensor& tensor, const Tensor& input) {
  return tensor ? tensor->to(compute_type(input)).contiguous() : Tensor();
}

template <typename C>
const C* data(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<C>() : nullptr;
}

template <typename C>
C* mutable_data(Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<C>() : nullptr;
}

using Statistics = std::tuple<Tensor, Tensor, Tensor>;  // output, mean, rstd

Statistics norm_cpu(const char* op, bool rms, const Tensor& input, at::IntArrayRef normalized_shape,
                    const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  const NormShape shape = check_norm(op, input, normalized_shape, weight, bias);
  const Tensor x = input.contiguous(), w = parameter(weight, input), b = parameter(bias, input);
  const auto computing = input.options().dtype(compute_type(input));
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor mean = at::empty({rms ? 0 : shape.rows}, computing), rstd = at::empty({shape.rows}, computing);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    norm_forward<T>({shape.rows, shape.cols, rms, eps, x.const_data_ptr<T>(), data<C>(w), data<C>(b),
                     output.mutable_data_ptr<T>(), mean.mutable_data_ptr<C>(), rstd.mutable_data_ptr<C>()});
  });
  return {output, mean, rstd};
}

Statistics layer_norm_cpu(const Tensor& input, at::IntArrayRef normalized_shape, const OptionalTensor& weight,
                          const OptionalTensor& bias, double eps) {
  return norm_cpu("layer_norm", false, input, normalized_shape, weight, bias, eps);
}

std::tuple<Tensor, Tensor> rms_norm_cpu(const Tensor& input, at::IntArrayRef normalized_shape,
                                        const OptionalTensor& weight, std::optional<double> eps) {
  const auto [output, mean, rstd] =
      norm_cpu("rms_norm", true, input, normalized_shape, weight, std::nullopt, rms_norm_eps(eps, input));
  return {output, rstd};
}

using Added = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // output, new_residual, mean, rstd

Added dropout_add_norm_cpu(const char* op, bool rms, const Tensor& input, const Tensor& residual,
                           const OptionalTensor& weight, const OptionalTensor& bias, double p, double eps,
                           const OptionalTensor& input_bias, const OptionalTensor& rng_state) {
  const NormShape shape = check_dropout_add_norm(op, input, residual, weight, bias, input_bias);
  const auto dropout = dropout_params(op, p, rng_state, input);
  const Tensor w = parameter(weight, input), b = parameter(bias, input);
  const Tensor added = input_bias ? input_bias->to(input.scalar_type()).contiguous() : Tensor();
  const Tensor x = input.contiguous(), r = residual.contiguous();
  const auto computing = input.options().dtype(compute_type(input));
  Tensor output = at::empty_like(x, at::MemoryFormat::Contiguous), new_residual = at::empty_like(output);
  Tensor mean = at::empty({rms ? 0 : shape.rows}, computing), rstd = at::empty({shape.rows}, computing);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    norm_forward<T>({shape.rows, shape.cols, rms, eps, x.const_data_ptr<T>(), data<C>(w), data<C>(b),
                     output.mutable_data_ptr<T>(), mean.mutable_data_ptr<C>(), rstd.mutable_data_ptr<C>(),
                     r.const_data_ptr<T>(), data<T>(added), new_residual.mutable_data_ptr<T>(),
                     dropout ? &*dropout : nullptr});
  });
  return {output, new_residual, mean, rstd};
}

Added dropout_add_layer_norm_cpu(const Tensor& input, const Tensor& residual, const OptionalTensor& weight,
                                 const OptionalTensor& bias, double p, double eps, const OptionalTensor& input_bias,
                                 const OptionalTensor& rng_state) {
  return dropout_add_norm_cpu("dropout_add_layer_norm", false, input, residual, weight, bias, p, eps, input_bias,
                              rng_state);
}

std::tuple<Tensor, Tensor, Tensor> dropout_add_rms_norm_cpu(const Tensor& input, const Tensor& residual,
                                                            const OptionalTensor& weight, double p,
                                                            std::optional<double> eps, const OptionalTensor& input_bias,
                                                            const OptionalTensor& rng_state) {
  const auto [output, new_residual, mean, rstd] =
      dropout_add_norm_cpu("dropout_add_rms_norm", true, input, residual, weight, std::nullopt, p,
                           rms_norm_eps(eps, input), input_bias, rng_state);
  return {output, new_residual, rstd};
}

// The gradients of all four ops. grad_input is undefined where it would equal grad_normalized (no dropout).
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // normalized, weight, bias, input, input_bias

Gradients norm_backward_cpu(const OptionalTensor& grad_output, const OptionalTensor& grad_residual,
                            const Tensor& normalized, const OptionalTensor& mean, const Tensor& rstd,
                            const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& input_bias,
                            double p, const OptionalTensor& rng_state) {
  const char* op = "norm_backward";
  const NormShape shape =
      check_norm_backward(op, grad_output, grad_residual, normalized, mean, rstd, weight, bias, input_bias);
  const auto dropout = dropout_params(op, p, rng_state, normalized);
  const auto incoming = [&](const OptionalTensor& grad) {
    return grad ? grad->to(normalized.scalar_type()).contiguous() : Tensor();
  };
  const Tensor x = normalized.contiguous(), w = parameter(weight, normalized);
  const Tensor dy = incoming(grad_output), more = incoming(grad_residual);
  Tensor grad_x = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor grad_input = dropout ? at::empty_like(grad_x) : Tensor();
  const auto like = [&](const OptionalTensor& t) {
    return t ? at::empty(t->sizes(), t->options().dtype(compute_type(x))) : Tensor();
  };
  Tensor grad_weight = like(weight), grad_bias = like(bias), grad_input_bias = like(input_bias);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    norm_backward<T>({shape.rows, shape.cols, !mean.has_value(), data<T>(dy), data<T>(more), x.const_data_ptr<T>(),
                      mean ? mean->const_data_ptr<C>() : nullptr, rstd.const_data_ptr<C>(), data<C>(w),
                      grad_x.mutable_data_ptr<T>(), mutable_data<C>(grad_weight), mutable_data<C>(grad_bias),
                      dropout ? &*dropout : nullptr, mutable_data<T>(grad_input), mutable_data<C>(grad_input_bias)});
  });
  const auto cast = [](const Tensor& grad, const OptionalTensor& like) {
    return grad.defined() ? grad.to(like->scalar_type()) : grad;
  };
  return {grad_x, cast(grad_weight, weight), cast(grad_bias, bias), grad_input, cast(grad_input_bias, input_bias)};
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd
// ---------------------------------------------------------------------------------------------------------------------

Gradients call_backward(const Tensor& grad_output, const Tensor& grad_residual, const Tensor& normalized,
                        const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias,
                        const Tensor& input_bias, double p, const Tensor& rng_state) {
  return find_op<"norm_backward", decltype(norm_backward_cpu)>().call(
      optional(grad_output), optional(grad_residual), normalized, optional(mean), rstd, optional(weight),
      optional(bias), optional(input_bias), p, optional(rng_state));
}

// A parameter whose gradient is wanted, but not its values: of these backward needs shape and dtype alone. The shape is
// that of the last `dims` dimensions of what was normalised.
struct ParameterLike {
  static c10::IValue describe(const OptionalTensor& parameter) {
    return wants_gradient(parameter) ? c10::IValue(static_cast<int64_t>(parameter->scalar_type())) : c10::IValue();
  }
  static Tensor make(const c10::IValue& described, const Tensor& grad, int64_t dims) {
    if (described.isNone()) return Tensor();
    const auto dtype = static_cast<at::ScalarType>(described.toInt());
    return at::empty_symint(grad.sym_sizes().slice(grad.dim() - dims), grad.options().dtype(dtype));
  }
};

// What a bias's gradient, the sum of grad_output's rows, does not look at: it stands in where nothing else is wanted.
struct Unread {
  Tensor normalized, statistic;

  Unread(const Tensor& grad, int64_t dims) : normalized(grad) {
    const auto computing = grad.options().dtype(compute_type(grad));
    const c10::SymInt rows = c10::multiply_integers(grad.sym_sizes().slice(0, grad.dim() - dims));
    statistic = at::zeros_symint({rows}, computing);
  }
};

// The gradients of layer_norm and rms_norm, for gradients of any order; an undefined input's and its weight's are not
// wanted. Autograd takes the parameters' to their dtypes.
struct NormGradients {
  Tensor input, weight, bias;

  NormGradients(bool rms, const Tensor& grad_output, const Tensor& normalized, const Tensor& scale, int64_t dims,
                double eps) {
    const Tensor grad = computed(grad_output);
    bias = sum_leading(grad, dims);
    if (!normalized.defined()) return;
    std::vector<int64_t> last;
    for (int64_t dim = -dims; dim < 0; ++dim) last.push_back(dim);
    const auto mean = [&](const Tensor& t) { return t.mean(last, /*keepdim=*/true); };
    const Tensor x = computed(normalized), centered = rms ? x : x - mean(x);
    const Tensor rstd = at::rsqrt(mean(centered.square()) + eps), y = centered * rstd;
    weight = sum_leading(grad * y, dims);
    const Tensor into = scale.defined() ? grad * scale.to(grad.scalar_type()) : grad;
    const Tensor aside = y * mean(into * y);
    input = ((rms ? into - aside : into - mean(into) - aside) * rstd).to(normalized.scalar_type());
  }
};

using LayerNormSignature = Statistics(const Tensor&, c10::SymIntArrayRef, const OptionalTensor&, const OptionalTensor&,
                                      double);

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                               const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, mean, rstd] =
        find_op<"layer_norm", LayerNormSignature>().call(input, normalized_shape, weight, bias, eps);
    const bool normalized = wants_gradient(input) || wants_gradient(weight);
    ctx->save_for_backward({kept_if(normalized, input), kept_if(normalized, mean), kept_if(normalized, rstd),
                            kept_if(wants_gradient(input), weight)});
    ctx->saved_data["dims"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["weight"] = ParameterLike::describe(weight);
    ctx->saved_data["bias"] = ParameterLike::describe(bias);
    ctx->mark_non_differentiable({mean, rstd});
    return {output, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list s = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const Tensor& grad = grads[0];
    const int64_t dims = data["dims"].toInt();
    if (higher_order()) {
      const NormGradients wanted(/*rms=*/false, grad, s[0], s[3], dims, data["eps"].toDouble());
      return {wanted.input, Tensor(), kept_if(!data["weight"].isNone(), wanted.weight),
              kept_if(!data["bias"].isNone(), wanted.bias), Tensor()};
    }
    const Tensor weight = s[3].defined() ? s[3] : ParameterLike::make(data["weight"], grad, dims);
    const Tensor bias = ParameterLike::make(data["bias"], grad, dims);
    Tensor normalized = s[0], mean = s[1], rstd = s[2];
    if (!normalized.defined()) {
      const Unread unread(grad, dims);
      normalized = unread.normalized, mean = rstd = unread.statistic;
    }
    const auto [dx, dw, db, unused, none] =
        call_backward(grad, Tensor(), normalized, mean, rstd, weight, bias, Tensor(), 0.0, Tensor());
    return {dx, Tensor(), dw, db, Tensor()};
  }
};

using RMSNormSignature = std::tuple<Tensor, Tensor>(const Tensor&, c10::SymIntArrayRef, const OptionalTensor&,
                                                    std::optional<double>);

struct RMSNorm : torch::autograd::Function<RMSNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                               const OptionalTensor& weight, std::optional<double> eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, rstd] = find_op<"rms_norm", RMSNormSignature>().call(input, normalized_shape, weight, eps);
    ctx->save_for_backward({input, rstd, kept_if(wants_gradient(input), weight)});
    ctx->saved_data["dims"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["eps"] = rms_norm_eps(eps, input);
    ctx->saved_data["weight"] = ParameterLike::describe(weight);
    ctx->mark_non_differentiable({rstd});
    return {output, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list s = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const int64_t dims = data["dims"].toInt();
    if (higher_order()) {
      const NormGradients wanted(/*rms=*/true, grads[0], s[0], s[2], dims, data["eps"].toDouble());
      return {wanted.input, Tensor(), kept_if(!data["weight"].isNone(), wanted.weight), Tensor()};
    }
    const Tensor weight = s[2].defined() ? s[2] : ParameterLike::make(data["weight"], grads[0], dims);
    const auto [dx, dw, db, unused, none] =
        call_backward(grads[0], Tensor(), s[0], Tensor(), s[1], weight, Tensor(), Tensor(), 0.0, Tensor());
    return {dx, Tensor(), dw, Tensor()};
  }
};

// What the two fused ops save and do alike. A mean is undefined for RMS norm.
struct DropoutAddNorm {
  static void save(AutogradContext* ctx, const Tensor& input, const Tensor& residual, const OptionalTensor& weight,
                   const OptionalTensor& bias, double p, const OptionalTensor& input_bias,
                   const OptionalTensor& rng_state, const Tensor& new_residual, const Tensor& mean,
                   const Tensor& rstd) {
    const bool through_dropout = wants_gradient(input) || wants_gradient(input_bias);
    const bool summed = through_dropout || wants_gradient(residual);  // the gradient of what was added is wanted
    const bool normalized = summed || wants_gradient(weight);
    ctx->save_for_backward({kept_if(normalized, new_residual), kept_if(normalized, mean), kept_if(normalized, rstd),
                            kept_if(summed, weight), kept_if(through_dropout, rng_state)});
    ctx->saved_data["weight"] = ParameterLike::describe(weight);
    ctx->saved_data["bias"] = ParameterLike::describe(bias);
    ctx->saved_data["input_bias"] = ParameterLike::describe(input_bias);
    ctx->saved_data["p"] = p;
    ctx->set_materialize_grads(false);  // one of the two gradients often does not come
  }

  // Of input, residual, weight, bias and input_bias; all undefined if nothing comes in.
  static std::array<Tensor, 5> gradients(AutogradContext* ctx, const variable_list& grads) {
    const variable_list s = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const Tensor& grad = grads[0].defined() ? grads[0] : grads[1];
    if (!grad.defined()) return {};
    const Tensor weight = s[3].defined() ? s[3] : ParameterLike::make(data["weight"], grad, 1);
    const Tensor bias = ParameterLike::make(data["bias"], grad, 1);
    const Tensor input_bias = ParameterLike::make(data["input_bias"], grad, 1);
    Tensor normalized = s[0], mean = s[1], rstd = s[2];
    if (!normalized.defined()) {
      const Unread unread(grad, 1);
      normalized = unread.normalized, mean = rstd = unread.statistic;
    }
    const auto [dz, dw, db, dropped, dib] =
        call_backward(grads[0], grads[1], normalized, mean, rstd, weight, bias, input_bias, data["p"].toDouble(), s[4]);
    return {dropped.defined() ? dropped : dz, dz, dw, db, dib};
  }
};

struct DropoutAddLayerNorm : torch::autograd::Function<DropoutAddLayerNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual,
                               const OptionalTensor& weight, const OptionalTensor& bias, double p, double eps,
                               const OptionalTensor& input_bias, const OptionalTensor& rng_state) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, new_residual, mean, rstd] =
        find_op<"dropout_add_layer_norm", decltype(dropout_add_layer_norm_cpu)>().call(input, residual, weight, bias, p,
                                                                                       eps, input_bias, rng_state);
    DropoutAddNorm::save(ctx, input, residual, weight, bias, p, input_bias, rng_state, new_residual, mean, rstd);
    ctx->mark_non_differentiable({mean, rstd});
    return {output, new_residual, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [dx, dr, dw, db, dib] = DropoutAddNorm::gradients(ctx, grads);
    return first_order_only("dropout_add_layer_norm", {dx, dr, dw, db, Tensor(), Tensor(), dib, Tensor()});
  }
};

struct DropoutAddRMSNorm : torch::autograd::Function<DropoutAddRMSNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual,
                               const OptionalTensor& weight, double p, std::optional<double> eps,
                               const OptionalTensor& input_bias, const OptionalTensor& rng_state) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [output, new_residual, rstd] =
        find_op<"dropout_add_rms_norm", decltype(dropout_add_rms_norm_cpu)>().call(input, residual, weight, p, eps,
                                                                                   input_bias, rng_state);
    DropoutAddNorm::save(ctx, input, residual, weight, std::nullopt, p, input_bias, rng_state, new_residual, Tensor(),
                         rstd);
    ctx->mark_non_differentiable({rstd});
    return {output, new_residual, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [dx, dr, dw, db, dib] = DropoutAddNorm::gradients(ctx, grads);
    return first_order_only("dropout_add_rms_norm", {dx, dr, dw, Tensor(), Tensor(), dib, Tensor()});
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps) -> (Tensor, Tensor)");
  m.def(
      "dropout_add_layer_norm(Tensor input, Tensor residual, Tensor? weight, Tensor? bias, float p, float eps, "
      "Tensor? input_bias, Tensor? rng_state) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dropout_add_rms_norm(Tensor input, Tensor residual, Tensor? weight, float p, float? eps, Tensor? input_bias, "
      "Tensor? rng_state) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor? grad_output, Tensor? grad_residual, Tensor normalized, Tensor? mean, Tensor rstd, "
      "Tensor? weight, Tensor? bias, Tensor? input_bias, float p, Tensor? rng_state) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("layer_norm", layer_norm_cpu);
  m.impl("rms_norm", rms_norm_cpu);
  m.impl("dropout_add_layer_norm", dropout_add_layer_norm_cpu);
  m.impl("dropout_add_rms_norm", dropout_add_rms_norm_cpu);
  m.impl("norm_backward", norm_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("layer_norm", AutogradKernel<LayerNorm, LayerNormSignature>::call);
  m.impl("rms_norm", AutogradKernel<RMSNorm, RMSNormSignature>::call);
  m.impl("dropout_add_layer_norm", AutogradKernel<DropoutAddLayerNorm, decltype(dropout_add_layer_norm_cpu)>::call);
  m.impl("dropout_add_rms_norm", AutogradKernel<DropoutAddRMSNorm, decltype(dropout_add_rms_norm_cpu)>::call);
}

}  // namespace fastllm
