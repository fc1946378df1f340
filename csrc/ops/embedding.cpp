// fastllm::embedding and its backward.
#include "ops/embedding.h"

#include "cpu/embedding.h"

namespace fastllm {
namespace {

// The tokens as contiguous int64, every one of them a row of the table.
Tensor check_tokens(const char* op, const Tensor& input, int64_t vocabulary) {
  const Tensor tokens = input.to(at::kLong).contiguous();
  const int64_t* t = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    FASTLLM_CHECK(t[i] >= 0 && t[i] < vocabulary, op, "input", c10::str("be in [0, ", vocabulary, ")"), t[i],
                  " at position ", i);
  }
  return tokens;
}

Tensor embedding_cpu(const Tensor& input, const Tensor& weight, int64_t padding_idx,
                     const OptionalTensor& position_weight, int64_t position_offset) {
  const char* op = "embedding";
  check_embedding(op, input, weight, padding_idx, position_weight, position_offset);
  const int64_t channels = weight.size(1), length = length_of(input);
  const Tensor tokens = check_tokens(op, input, weight.size(0)), w = weight.contiguous();
  const Tensor p = position_weight ? position_weight->contiguous() : Tensor();
  Tensor output = empty_rows(input, weight);
  dispatch_floating(weight.scalar_type(), [&]<typename T>() {
    embedding_forward<T>(tokens.numel(), length, channels, tokens.const_data_ptr<int64_t>(), w.const_data_ptr<T>(),
                         position_weight ? p.const_data_ptr<T>() : nullptr, position_offset,
                         output.mutable_data_ptr<T>());
  });
  return output;
}

std::tuple<Tensor, Tensor> embedding_backward_cpu(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                  int64_t padding_idx, const OptionalTensor& position_weight,
                                                  int64_t position_offset) {
  const char* op = "embedding_backward";
  check_embedding(op, input, weight, padding_idx, position_weight, position_offset);
  const Tensor tokens = check_tokens(op, input, weight.size(0)), grad = grad_output.contiguous();
  const int64_t channels = weight.size(1), length = length_of(input);
  Tensor grad_weight = at::empty(weight.sizes(), weight.options());
  Tensor grad_position = position_weight ? at::empty(position_weight->sizes(), weight.options()) : Tensor();
  dispatch_floating(weight.scalar_type(), [&]<typename T>() {
    embedding_backward<T>(tokens.numel(), weight.size(0), channels, tokens.const_data_ptr<int64_t>(), padding_idx,
                          grad.const_data_ptr<T>(), grad_weight.mutable_data_ptr<T>());
    if (position_weight) {
      position_backward<T>(tokens.numel(), length, position_weight->size(0), channels, position_offset,
                           grad.const_data_ptr<T>(), grad_position.mutable_data_ptr<T>());
    }
  });
  return {grad_weight, grad_position};
}

struct Embedding : torch::autograd::Function<Embedding> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, int64_t padding_idx,
                        const OptionalTensor& position_weight, int64_t position_offset) {
    static auto op = find_op<decltype(embedding_cpu)>("fastllm::embedding");
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input, weight, or_undefined(position_weight)});
    ctx->saved_data["padding_idx"] = padding_idx;
    ctx->saved_data["position_offset"] = position_offset;
    return op.call(input, weight, padding_idx, position_weight, position_offset);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static auto op = find_op<decltype(embedding_backward_cpu)>("fastllm::embedding_backward");
    const variable_list saved = ctx->get_saved_variables();
    const auto [grad_weight, grad_position] =
        op.call(grads[0], saved[0], saved[1], ctx->saved_data["padding_idx"].toInt(), optional(saved[2]),
                ctx->saved_data["position_offset"].toInt());
    return first_order_only("embedding", {Tensor(), grad_weight, Tensor(), grad_position, Tensor()});
  }
};

Tensor embedding_autograd(const Tensor& input, const Tensor& weight, int64_t padding_idx,
                          const OptionalTensor& position_weight, int64_t position_offset) {
  return Embedding::apply(input, weight, padding_idx, position_weight, position_offset);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "embedding(Tensor input, Tensor weight, int padding_idx, Tensor? position_weight, int position_offset) "
      "-> Tensor");
  m.def(
      "embedding_backward(Tensor grad_output, Tensor input, Tensor weight, int padding_idx, Tensor? position_weight, "
      "int position_offset) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("embedding", embedding_cpu);
  m.impl("embedding_backward", embedding_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("embedding", embedding_autograd);
}

}  // namespace fastllm
