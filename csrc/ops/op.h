// What every op file starts from: torch's registration and autograd, the argument checks and the dtype dispatch.
// It is precompiled, which makes an op file a matter of seconds; keep it to what most ops need.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "common/checks.h"

namespace fastllm {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Runs body<T>() with T the C++ type of a floating dtype that the kernels take. Check the dtype before.
template <typename Body>
void dispatch_floating(at::ScalarType dtype, Body&& body) {
  switch (dtype) {
    case at::kFloat:
      return body.template operator()<float>();
    case at::kDouble:
      return body.template operator()<double>();
    case at::kBFloat16:
      return body.template operator()<c10::BFloat16>();
    case at::kHalf:
      return body.template operator()<c10::Half>();
    default:
      TORCH_INTERNAL_ASSERT(false, "fastllm: dtype was not checked before dispatch");
  }
}

// The dispatcher's entry for "fastllm::<name>". Keep the result in a static: the look-up is slow, the call is not.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}
inline Tensor or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() ? *tensor : Tensor();
}

// Whether backward may be asked for this tensor's gradient. Forward asks, so that it saves what those gradients need
// and nothing else: what is frozen keeps no activation alive, and what is not saved may be overwritten.
inline bool wants_gradient(const Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad();
}
inline bool wants_gradient(const OptionalTensor& tensor) {
  return tensor.has_value() && wants_gradient(*tensor);
}
inline Tensor kept_if(bool needed, const OptionalTensor& tensor) {
  return needed ? or_undefined(tensor) : Tensor();
}

// Gradients on their way out of a backward formula. Where the user asked for a graph of them (create_graph=True), that
// graph leads to the op's inputs through an error which names the op, raised only if somebody differentiates that far.
inline variable_list first_order_only(const char* op, variable_list gradients) {
  if (!at::GradMode::is_enabled()) return gradients;
  const std::string message = std::string("fastllm.") + op +
                              ": double backward is not implemented; differentiate a torch.nn.functional version "
                              "of this op where second derivatives are needed";
  const size_t count = gradients.size();
  // Gradients need not depend on the inputs by themselves: some were made in forward, or by kernels without a formula.
  if (const auto node = torch::autograd::get_current_node()) {
    for (const torch::autograd::Edge& edge : node->next_edges()) {
      if (!edge.is_valid()) continue;
      gradients.push_back(at::empty({0}));
      torch::autograd::impl::set_gradient_edge(gradients.back(), edge);
    }
  }
  torch::autograd::DelayedError error(message, static_cast<int64_t>(gradients.size()));
  gradients = error.apply(std::move(gradients));
  gradients.resize(count);
  return gradients;
}

}  // namespace fastllm
