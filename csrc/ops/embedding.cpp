// fastllm::embedding and its backward, an op for each table.
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

Tensor embedding_cpu(const Tensor& input, const Tensor& weight, std::optional<int64_t> padding_idx,
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

Tensor embedding_backward_cpu(const Tensor& grad_output, const Tensor& input, int64_t num_embeddings,
                              std::optional<int64_t> padding_idx) {
  const char* op = "embedding_backward";
  check_embedding_backward(op, grad_output, input, num_embeddings);
  const int64_t padding = padding_row(op, padding_idx, num_embeddings), channels = grad_output.size(-1);
  const Tensor tokens = check_tokens(op, input, num_embeddings), grad = grad_output.contiguous();
  Tensor grad_weight = at::empty({num_embeddings, channels}, grad.options());
  dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    embedding_backward<T>(tokens.numel(), num_embeddings, channels, tokens.const_data_ptr<int64_t>(), padding,
                          grad.const_data_ptr<T>(), grad_weight.mutable_data_ptr<T>());
  });
  return grad_weight;
}

Tensor embedding_position_backward_cpu(const Tensor& grad_output, int64_t num_positions, int64_t position_offset) {
  const PositionRows rows =
      check_position_backward("embedding_position_backward", grad_output, num_positions, position_offset);
  const Tensor grad = grad_output.contiguous();
  Tensor grad_position = at::empty({num_positions, rows.channels}, grad.options());
  dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    position_backward<T>(rows.count, rows.length, num_positions, rows.channels, position_offset,
                         grad.const_data_ptr<T>(), grad_position.mutable_data_ptr<T>());
  });
  return grad_position;
}

// Of the tables backward needs the numbers of rows alone.
struct Embedding : torch::autograd::Function<Embedding> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                        std::optional<int64_t> padding_idx, const OptionalTensor& position_weight,
                        int64_t position_offset) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({kept_if(wants_gradient(weight), input)});
    ctx->saved_data["num_embeddings"] = weight.sym_size(0);
    ctx->saved_data["padding_idx"] = padding_idx;
    if (wants_gradient(position_weight)) ctx->saved_data["num_positions"] = position_weight->sym_size(0);
    ctx->saved_data["position_offset"] = position_offset;
    return find_op<"embedding", decltype(embedding_cpu)>().call(input, weight, padding_idx, position_weight,
                                                                position_offset);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    using Backward = Tensor(const Tensor&, const Tensor&, c10::SymInt, std::optional<int64_t>);
    using PositionBackward = Tensor(const Tensor&, c10::SymInt, int64_t);
    const Tensor tokens = ctx->get_saved_variables()[0];
    auto& data = ctx->saved_data;
    Tensor grad_weight, grad_position;
    if (tokens.defined()) {
      grad_weight = find_op<"embedding_backward", Backward>().call(grads[0], tokens, data["num_embeddings"].toSymInt(),
                                                                   data["padding_idx"].toOptional<int64_t>());
    }
    if (!data["num_positions"].isNone()) {
      grad_position = find_op<"embedding_position_backward", PositionBackward>().call(
          grads[0], data["num_positions"].toSymInt(), data["position_offset"].toInt());
    }
    return first_order_only("embedding", {Tensor(), grad_weight, Tensor(), grad_position, Tensor()});
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "embedding(Tensor input, Tensor weight, int? padding_idx, Tensor? position_weight, int position_offset) "
      "-> Tensor");
  m.def("embedding_backward(Tensor grad_output, Tensor input, SymInt num_embeddings, int? padding_idx) -> Tensor");
  m.def("embedding_position_backward(Tensor grad_output, SymInt num_positions, int position_offset) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("embedding", embedding_cpu);
  m.impl("embedding_backward", embedding_backward_cpu);
  m.impl("embedding_position_backward", embedding_position_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("embedding", AutogradKernel<Embedding, decltype(embedding_cpu)>::call);
}

}  // namespace fastllm
