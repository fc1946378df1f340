// fastllm::layer_norm, rms_norm, dropout_add_layer_norm, dropout_add_rms_norm and their backward on CUDA.
#include "cuda/norm.h"

#include "ops/cuda.h"
#include "ops/cuda/dropout_state.h"
#include "ops/norm.h"

namespace fastllm {
namespace {

// A parameter as kernels read it: as it is if of the input's dtype or float32, else in float32.
struct ParameterData {
  Tensor tensor;

  ParameterData(const OptionalTensor& parameter, const Tensor& input) {
    if (!parameter) return;
    const bool as_it_is = parameter->scalar_type() == input.scalar_type() || parameter->scalar_type() == at::kFloat;
    tensor = (as_it_is ? *parameter : parameter->to(at::kFloat)).contiguous();
  }
  operator cuda::Parameter() const {
    if (!tensor.defined()) return {};
    return {tensor.const_data_ptr(), tensor.scalar_type() == at::kFloat};
  }
};

// Rows that are normalised: what the four ops have in common.
struct NormForward {
  Tensor input;
  ParameterData weight, bias;
  Tensor output, mean, rstd;
  cuda::NormForwardParams params;

  NormForward(cuda::DType dtype, bool rms, const NormShape& shape, const Tensor& given, const OptionalTensor& weight,
              const OptionalTensor& bias, double eps)
      : input(given.contiguous()),
        weight(weight, given),
        bias(bias, given),
        output(at::empty_like(input, at::MemoryFormat::Contiguous)),
        mean(at::empty({rms ? 0 : shape.rows}, input.options().dtype(at::kFloat))),
        rstd(at::empty({shape.rows}, mean.options())),
        params{.dtype = dtype,
               .rows = shape.rows,
               .cols = shape.cols,
               .rms = rms,
               .eps = static_cast<float>(eps),
               .input = input.const_data_ptr(),
               .weight = this->weight,
               .bias = this->bias,
               .output = output.mutable_data_ptr(),
               .mean = mean.mutable_data_ptr<float>(),
               .rstd = rstd.mutable_data_ptr<float>()} {}
};

NormForward norm_cuda(const char* op, bool rms, const Tensor& input, at::IntArrayRef normalized_shape,
                      const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  const NormShape shape = check_norm(op, input, normalized_shape, weight, bias);
  const cuda::DType dtype = cuda_dtype(op, "input", input);
  const CudaGuard guard(input);
  NormForward norm(dtype, rms, shape, input, weight, bias, eps);
  check_launch(op, cuda::norm_forward(norm.params, current_stream()));
  return norm;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_cuda(const Tensor& input, at::IntArrayRef normalized_shape,
                                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                                   double eps) {
  const NormForward norm = norm_cuda("layer_norm", false, input, normalized_shape, weight, bias, eps);
  return {norm.output, norm.mean, norm.rstd};
}

std::tuple<Tensor, Tensor> rms_norm_cuda(const Tensor& input, at::IntArrayRef normalized_shape,
                                         const OptionalTensor& weight, std::optional<double> eps) {
  const NormForward norm =
      norm_cuda("rms_norm", true, input, normalized_shape, weight, std::nullopt, rms_norm_eps(eps, input));
  return {norm.output, norm.rstd};
}

struct Added {
  NormForward norm;
  Tensor new_residual;
};

Added dropout_add_norm_cuda(const char* op, bool rms, const Tensor& input, const Tensor& residual,
                            const OptionalTensor& weight, const OptionalTensor& bias, double p, double eps,
                            const OptionalTensor& input_bias, const OptionalTensor& rng_state) {
  const NormShape shape = check_dropout_add_norm(op, input, residual, weight, bias, input_bias);
  const cuda::DType dtype = cuda_dtype(op, "input", input);
  const CudaGuard guard(input);
  const DropoutState state(op, p, rng_state, input);
  const Tensor r = residual.contiguous();
  const ParameterData added(input_bias, input);
  NormForward norm(dtype, rms, shape, input, weight, bias, eps);
  Tensor new_residual = at::empty_like(norm.output);
  norm.params.residual = r.const_data_ptr();
  norm.params.input_bias = added;
  norm.params.new_residual = new_residual.mutable_data_ptr();
  norm.params.dropout = state.dropout;
  check_launch(op, cuda::norm_forward(norm.params, current_stream()));
  return {norm, new_residual};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_cuda(const Tensor& input, const Tensor& residual,
                                                                       const OptionalTensor& weight,
                                                                       const OptionalTensor& bias, double p, double eps,
                                                                       const OptionalTensor& input_bias,
                                                                       const OptionalTensor& rng_state) {
  const auto [norm, new_residual] = dropout_add_norm_cuda("dropout_add_layer_norm", false, input, residual, weight,
                                                          bias, p, eps, input_bias, rng_state);
  return {norm.output, new_residual, norm.mean, norm.rstd};
}

std::tuple<Tensor, Tensor, Tensor> dropout_add_rms_norm_cuda(const Tensor& input, const Tensor& residual,
                                                             const OptionalTensor& weight, double p,
                                                             std::optional<double> eps,
                                                             const OptionalTensor& input_bias,
                                                             const OptionalTensor& rng_state) {
  const auto [norm, new_residual] =
      dropout_add_norm_cuda("dropout_add_rms_norm", true, input, residual, weight, std::nullopt, p,
                            rms_norm_eps(eps, input), input_bias, rng_state);
  return {norm.output, new_residual, norm.rstd};
}

// A parameter's gradient as the kernels write it: in the parameter's dtype, or for float64 in float32.
struct ParameterGradient {
  Tensor tensor, partials;

  explicit ParameterGradient(const OptionalTensor& parameter) {
    if (!parameter) return;
    const bool as_it_is = parameter->scalar_type() != at::kDouble;
    tensor =
        at::empty(parameter->sizes(), parameter->options().dtype(as_it_is ? parameter->scalar_type() : at::kFloat));
  }
  cuda::ColumnSum sum(const char* op) const {
    if (!tensor.defined()) return {};
    return {nullptr, tensor.mutable_data_ptr(), cuda_dtype(op, "a parameter", tensor)};
  }
  // Gives `sum` its room for partial sums.
  void allocate(int64_t groups, int64_t cols, cuda::ColumnSum& sum) {
    if (!tensor.defined()) return;
    partials = at::empty({groups, cols}, tensor.options().dtype(at::kFloat));
    sum.partials = partials.mutable_data_ptr<float>();
  }
  Tensor like(const OptionalTensor& parameter) const {
    return parameter ? tensor.to(parameter->scalar_type()) : Tensor();
  }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // normalized, weight, bias, input, input_bias

Gradients norm_backward_cuda(const OptionalTensor& grad_output, const OptionalTensor& grad_residual,
                             const Tensor& normalized, const OptionalTensor& mean, const Tensor& rstd,
                             const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& input_bias,
                             double p, const OptionalTensor& rng_state) {
  const char* op = "norm_backward";
  const auto [rows, cols] =
      check_norm_backward(op, grad_output, grad_residual, normalized, mean, rstd, weight, bias, input_bias);
  const cuda::DType dtype = cuda_dtype(op, "normalized", normalized);
  const CudaGuard guard(normalized);
  const DropoutState state(op, p, rng_state, normalized);
  const auto incoming = [&](const OptionalTensor& grad) {
    return grad ? grad->to(normalized.scalar_type()).contiguous() : Tensor();
  };
  const auto data = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  const Tensor x = normalized.contiguous(), dy = incoming(grad_output), more = incoming(grad_residual);
  const Tensor means = mean ? mean->contiguous() : Tensor(), rstds = rstd.contiguous();
  const ParameterData w(weight, normalized);
  Tensor grad_x = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor grad_input = rng_state ? at::empty_like(grad_x) : Tensor();
  ParameterGradient grad_weight(weight), grad_bias(bias), grad_input_bias(input_bias);
  cuda::NormBackwardParams params{.dtype = dtype,
                                  .rows = rows,
                                  .cols = cols,
                                  .grad_output = data(dy),
                                  .grad_residual = data(more),
                                  .normalized = x.const_data_ptr(),
                                  .mean = static_cast<const float*>(data(means)),
                                  .rstd = rstds.const_data_ptr<float>(),
                                  .weight = w,
                                  .grad_normalized = grad_x.mutable_data_ptr(),
                                  .dropout = state.dropout,
                                  .grad_input = rng_state ? grad_input.mutable_data_ptr() : nullptr,
                                  .grad_weight = grad_weight.sum(op),
                                  .grad_bias = grad_bias.sum(op),
                                  .grad_input_bias = grad_input_bias.sum(op)};
  const cuda::NormBackwardRoom room = cuda::norm_backward_room(params);
  grad_weight.allocate(room.groups, cols, params.grad_weight);
  grad_bias.allocate(room.groups, cols, params.grad_bias);
  grad_input_bias.allocate(room.groups, cols, params.grad_input_bias);
  Tensor row_means = at::empty({room.row_means}, x.options().dtype(at::kFloat));
  params.row_means = row_means.mutable_data_ptr<float>();
  check_launch(op, cuda::norm_backward(params, current_stream()));
  return {grad_x, grad_weight.like(weight), grad_bias.like(bias), grad_input, grad_input_bias.like(input_bias)};
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("layer_norm", layer_norm_cuda);
  m.impl("rms_norm", rms_norm_cuda);
  m.impl("dropout_add_layer_norm", dropout_add_layer_norm_cuda);
  m.impl("dropout_add_rms_norm", dropout_add_rms_norm_cuda);
  m.impl("norm_backward", norm_backward_cuda);
}

}  // namespace fastllm
