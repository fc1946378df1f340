// fastllm::grad_norm and fastllm::adamw_, the two halves of an optimizer step with clipping.
#include "cpu/adamw.h"

#include <cmath>

#include "ops/op.h"

namespace fastllm {
namespace {

void check(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  FASTLLM_CHECK_TYPE(
      t.scalar_type() == like.scalar_type() && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble), op,
      argument, "be float32 or float64, all alike", t.scalar_type());
  check_same_shape(op, argument, t, "parameters", like);
  FASTLLM_CHECK(t.is_contiguous(), op, argument, "be contiguous", c10::str("strides ", t.strides()));
}

double grad_norm_cpu(at::TensorList gradients) {
  double total = 0.0;
  std::vector<AdamWTensor<float>> singles;
  std::vector<AdamWTensor<double>> doubles;
  for (const Tensor& g : gradients) {
    check("grad_norm", "gradients", g, g);
    if (g.scalar_type() == at::kFloat)
      singles.push_back({g.numel(), nullptr, g.const_data_ptr<float>(), nullptr, nullptr, 0.0});
    else
      doubles.push_back({g.numel(), nullptr, g.const_data_ptr<double>(), nullptr, nullptr, 0.0});
  }
  total = sum_of_squares(singles) + sum_of_squares(doubles);
  return std::sqrt(total);
}

// One more step, and its number.
double advance(const Tensor& step) {
  return step.scalar_type() == at::kFloat ? ++*step.mutable_data_ptr<float>() : ++*step.mutable_data_ptr<double>();
}

void adamw_cpu(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
               at::TensorList steps, double lr, double beta1, double beta2, double eps, double weight_decay,
               bool maximize, double gradient_scale) {
  const char* op = "adamw_";
  const std::pair<const char*, size_t> lists[] = {{"gradients", gradients.size()},
                                                  {"exp_avgs", exp_avgs.size()},
                                                  {"exp_avg_sqs", exp_avg_sqs.size()},
                                                  {"steps", steps.size()}};
  for (const auto& [name, size] : lists)
    FASTLLM_CHECK(size == parameters.size(), op, name, c10::str("be ", parameters.size(), " tensors, as parameters"),
                  size);
  for (size_t i = 0; i < parameters.size(); ++i) {
    check(op, "parameters", parameters[i], parameters[i]);
    check(op, "gradients", gradients[i], parameters[i]);
    check(op, "exp_avgs", exp_avgs[i], parameters[i]);
    check(op, "exp_avg_sqs", exp_avg_sqs[i], parameters[i]);
    const at::ScalarType dtype = steps[i].scalar_type();
    FASTLLM_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, op, "steps", "be float32 or float64", dtype);
    check_shape(op, "steps", steps[i], {});
  }
  const AdamWOptions options{lr, beta1, beta2, eps, weight_decay, maximize, gradient_scale};
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
  m.def("grad_norm(Tensor[] gradients) -> float");
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, float lr, float beta1, float beta2, float eps, float weight_decay, bool maximize, float "
      "gradient_scale) -> ()");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("grad_norm", grad_norm_cpu);
  m.impl("adamw_", adamw_cpu);
}

}  // namespace fastllm
