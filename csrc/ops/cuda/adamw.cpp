// fastllm::grad_norm and fastllm::adamw_ on CUDA. Everything is float32 there.
#include "cuda/adamw.h"

#include <cmath>

#include "ops/adamw.h"
#include "ops/cuda.h"

namespace fastllm {
namespace {

void check_float32(const char* op, const char* argument, const Tensor& tensor) {
  FASTLLM_CHECK_TYPE(tensor.scalar_type() == at::kFloat, op, argument, "be float32 on CUDA", tensor.scalar_type());
}

Tensor grad_norm_cuda(at::TensorList gradients) {
  const char* op = "grad_norm";
  check_gradients(op, gradients);
  const CudaGuard guard(gradients[0]);
  std::vector<cuda::Gradient> list;
  for (const Tensor& g : gradients) {
    check_float32(op, "gradients", g);
    if (g.numel()) list.push_back({g.numel(), g.const_data_ptr<float>()});
  }
  const auto options = gradients[0].options();
  const Tensor partial = at::empty({cuda::grad_norm_partials(list)}, options);
  Tensor norm = at::empty({}, options.dtype(at::kDouble));
  check_launch(
      op, cuda::grad_norm(list, partial.mutable_data_ptr<float>(), norm.mutable_data_ptr<double>(), current_stream()));
  return norm;
}

void adamw_cuda(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                at::TensorList exp_avg_sqs, at::TensorList steps, double lr, const OptionalTensor& lr_tensor,
                double beta1, double beta2, double eps, double weight_decay, bool maximize,
                const OptionalTensor& grad_norm, double max_norm) {
  const char* op = "adamw_";
  check_adamw(op, parameters, gradients, exp_avgs, exp_avg_sqs, steps, lr_tensor, grad_norm);
  if (parameters.empty()) return;
  if (lr_tensor) check_float32(op, "lr_tensor", *lr_tensor);
  if (grad_norm) {
    FASTLLM_CHECK_TYPE(grad_norm->scalar_type() == at::kDouble, op, "grad_norm", "be float64",
                       grad_norm->scalar_type());
  }
  const CudaGuard guard(parameters[0]);
  std::vector<cuda::AdamWTensor> tensors;
  for (size_t i = 0; i < parameters.size(); ++i) {
    check_float32(op, "parameters", parameters[i]);
    check_float32(op, "steps", steps[i]);
    tensors.push_back({parameters[i].numel(), parameters[i].mutable_data_ptr<float>(),
                       gradients[i].const_data_ptr<float>(), exp_avgs[i].mutable_data_ptr<float>(),
                       exp_avg_sqs[i].mutable_data_ptr<float>(), steps[i].mutable_data_ptr<float>()});
  }
  const cuda::AdamWOptions options{.learning_rate = static_cast<float>(lr),
                                   .learning_rate_tensor = lr_tensor ? lr_tensor->const_data_ptr<float>() : nullptr,
                                   .weight_decay = static_cast<float>(weight_decay),
                                   .beta1 = static_cast<float>(beta1),
                                   .beta2 = static_cast<float>(beta2),
                                   .eps = static_cast<float>(eps),
                                   .rest1 = static_cast<float>(1.0 - beta1),
                                   .rest2 = static_cast<float>(1.0 - beta2),
                                   .log_beta1 = static_cast<float>(std::log(beta1)),
                                   .log_beta2 = static_cast<float>(std::log(beta2)),
                                   .maximize = maximize,
                                   .grad_norm = grad_norm ? grad_norm->const_data_ptr<double>() : nullptr,
                                   .max_norm = static_cast<float>(max_norm)};
  check_launch(op, cuda::adamw(tensors, options, current_stream()));
}

}  // namespace

FASTLLM_CUDA_IMPL(m) {
  m.impl("grad_norm", grad_norm_cuda);
  m.impl("adamw_", adamw_cuda);
}

}  // namespace fastllm
