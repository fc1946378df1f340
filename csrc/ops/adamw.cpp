// fastllm::grad_norm and fastllm::adamw_, the two halves of an optimizer step with clipping. The norm is a tensor on
// the gradients' device from one to the other, so that a step on CUDA never waits.
#include "ops/adamw.h"

#include <cmath>

#include "cpu/adamw.h"

namespace fastllm {
namespace {

Tensor grad_norm_cpu(at::TensorList gradients) {
  check_gradients("grad_norm", gradients);
  std::vector<AdamWTensor<float>> singles;
  std::vector<AdamWTensor<double>> doubles;
  for (const Tensor& g : gradients) {
    if (g.scalar_type() == at::kFloat)
      singles.push_back({g.numel(), nullptr, g.const_data_ptr<float>(), nullptr, nullptr, 0.0});
    else
      doubles.push_back({g.numel(), nullptr, g.const_data_ptr<double>(), nullptr, nullptr, 0.0});
  }
  Tensor norm = at::empty({}, gradients[0].options().dtype(at::kDouble));
  *norm.mutable_data_ptr<double>() = std::sqrt(sum_of_squares(singles) + sum_of_squares(doubles));
  return norm;
}

// One more step, and its number.
double advance(const Tensor& step) {
  return step.scalar_type() == at::kFloat ? ++*step.mutable_data_ptr<float>() : ++*step.mutable_data_ptr<double>();
}

double value_of(const Tensor& scalar) {
  return scalar.scalar_type() == at::kFloat ? *scalar.const_data_ptr<float>() : *scalar.const_data_ptr<double>();
}

// What gradients are multiplied by so that their norm is at most max_norm, as torch.nn.utils.clip_grad_norm_ has it; a
// NaN reaches the parameters.
double clip_factor(double norm, double max_norm) {
  return norm + 1e-6 <= max_norm ? 1.0 : max_norm / (norm + 1e-6);
}

void adamw_cpu(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
               at::TensorList steps, double lr, const OptionalTensor& lr_tensor, double beta1, double beta2, double eps,
               double weight_decay, bool maximize, const OptionalTensor& grad_norm, double max_norm) {
  check_adamw("adamw_", parameters, gradients, exp_avgs, exp_avg_sqs, steps, lr_tensor, grad_norm);
  const double scale = grad_norm ? clip_factor(value_of(*grad_norm), max_norm) : 1.0;
  const AdamWOptions options{lr_tensor ? value_of(*lr_tensor) : lr, beta1, beta2, eps, weight_decay, maximize, scale};
  const auto update = [&]<typename T>() {
    std::vector<AdamWTensor<T>> tensors;
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].scalar_type() != c10::CppTypeToScalarType<T>::value) continue;
      tensors.push_back({parameters[i].numel(), parameters[i].mutable_data_ptr<T>(), gradients[i].const_data_ptr<T>(),
                         exp_avgs[i].mutable_data_ptr<T>(), exp_avg_sqs[i].mutable_data_ptr<T>(), advance(steps[i])});
    }
    if (!tensors.empty()) adamw_update(tensors, options);
  };
  update.operator()<float>();
  update.operator()<double>();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def("grad_norm(Tensor[] gradients) -> Tensor");
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, float lr, Tensor? lr_tensor, float beta1, float beta2, float eps, float weight_decay, "
      "bool maximize, Tensor? grad_norm, float max_norm) -> ()");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("grad_norm", grad_norm_cpu);
  m.impl("adamw_", adamw_cpu);
}

}  // namespace fastllm
