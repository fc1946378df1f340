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

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

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

// The dtype that kernels compute and keep statistics in.
inline at::ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// ---------------------------------------------------------------------------------------------------------------------
// Calls through the dispatcher
// ---------------------------------------------------------------------------------------------------------------------

// A name as a template's argument.
template <size_t kSize>
struct OpName {
  char text[kSize]{};

  constexpr OpName(const char (&name)[kSize]) { std::copy_n(name, kSize, text); }
};

// The dispatcher's entry of fastllm::<kName>, looked up once: that is slow, a call is not. The signature is that of the
// op's implementation, with SymInt where the schema has it.
template <OpName kName, typename Signature>
const c10::TypedOperatorHandle<Signature>& find_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow((std::string("fastllm::") + kName.text).c_str(), "")
                             .template typed<Signature>();
  return op;
}

// `call` is the autograd kernel of an op that has this signature: it runs Function, a torch::autograd::Function whose
// forward takes the op's arguments and returns its results.
template <typename Function, typename Signature>
struct AutogradKernel;

template <typename Function, typename Result, typename... Args>
struct AutogradKernel<Function, Result(Args...)> {
  static Result call(Args... args) {
    if constexpr (std::is_same_v<Result, Tensor>) {
      return Function::apply(args...);
    } else {
      const variable_list results = Function::apply(args...);
      return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
        return Result(results[kIndex]...);
      }(std::make_index_sequence<std::tuple_size_v<Result>>{});
    }
  }
};

// While it lives, calls pass by autocast.
template <c10::DeviceType kDevice>
struct BelowAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{at::autocast::get_autocast_dispatch_key_from_device_type(kDevice)};
};

// A floating tensor in the dtype that autocast runs in; any other argument as it is.
template <c10::DeviceType kDevice, typename Argument>
Argument autocast(const Argument& argument) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), argument, kDevice);
}

// `call` is the autocast kernel of fastllm::<kName>: it casts the first kCount arguments.
template <OpName kName, typename Signature, c10::DeviceType kDevice, size_t kCount>
struct AutocastKernel;

template <OpName kName, typename Result, typename... Args, c10::DeviceType kDevice, size_t kCount>
struct AutocastKernel<kName, Result(Args...), kDevice, kCount> {
  static Result call(Args... args) {
    const BelowAutocast<kDevice> guard;
    return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
      return find_op<kName, Result(Args...)>().call(cast_if<(kIndex < kCount)>(args)...);
    }(std::index_sequence_for<Args...>{});
  }

 private:
  template <bool kCast, typename Argument>
  static Argument cast_if(const Argument& argument) {
    if constexpr (kCast) return autocast<kDevice>(argument);
    return argument;
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// What autograd functions share
// ---------------------------------------------------------------------------------------------------------------------

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
