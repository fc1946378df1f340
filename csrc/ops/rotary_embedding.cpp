// fastllm::rotary_embedding. Its derivative is itself with `inverse` flipped: a rotation's transpose turns back.
#include "ops/rotary_embedding.h"

#include "cpu/rotary_embedding.h"

namespace fastllm {
namespace {

constexpr const char* kOp = "rotary_embedding";

// On a GPU nobody waits for the positions to look at them; there those outside the tables give NaN.
void check_positions(const Rotary& r, int64_t tokens) {
  const int64_t last = r.step * std::max<int64_t>(0, tokens - 1);
  for (int64_t b = 0; r.positions && b < r.batch; ++b) {
    for (int64_t t = 0; t < (r.step ? 1 : tokens); ++t) {
      FASTLLM_CHECK(r.position(b, t) >= 0 && r.position(b, t) < r.table_rows - last, kOp, "positions",
                    c10::str("be in [0, ", r.table_rows - last, "): 'cos' has ", r.table_rows, " rows"),
                    r.position(b, t), " in sequence ", b);
    }
  }
}

Tensor rotary_embedding_cpu(const Tensor& input, const Tensor& cos, const Tensor& sin, bool interleaved,
                            c10::string_view layout, int64_t offset, const OptionalTensor& positions, bool inverse,
                            std::optional<int64_t> num_heads) {
  const RotaryArguments a =
      check_rotary_embedding(kOp, input, cos, sin, interleaved, layout, offset, positions, inverse, num_heads);
  check_positions(a.rotary, a.rotary.tokens_outer ? a.rotary.outer : a.rotary.inner);
  Tensor output = at::empty(input.sizes(), input.options());
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using C = Compute<T>;
    rotary_embedding<T>(a.rotary, a.input.const_data_ptr<T>(), a.cos.const_data_ptr<C>(), a.sin.const_data_ptr<C>(),
                        output.mutable_data_ptr<T>());
  });
  return output;
}

// ---------------------------------------------------------------------------------------------------------------------
// Autograd
// ---------------------------------------------------------------------------------------------------------------------

using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, bool, c10::string_view, c10::SymInt,
                         const OptionalTensor&, bool, std::optional<int64_t>);

struct RotaryEmbedding : torch::autograd::Function<RotaryEmbedding> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& cos, const Tensor& sin,
                        bool interleaved, c10::string_view layout, const c10::SymInt& offset,
                        const OptionalTensor& positions, bool inverse, std::optional<int64_t> num_heads) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({cos, sin, or_undefined(positions)});
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["layout"] = std::string(layout);
    ctx->saved_data["offset"] = offset;
    ctx->saved_data["inverse"] = inverse;
    ctx->saved_data["num_heads"] = num_heads;
    return find_op<"rotary_embedding", Signature>().call(input, cos, sin, interleaved, layout, offset, positions,
                                                         inverse, num_heads);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const Tensor grad = find_op<"rotary_embedding", Signature>().call(
        grad_outputs[0], saved[0], saved[1], data["interleaved"].toBool(), data["layout"].toStringRef(),
        data["offset"].toSymInt(), optional(saved[2]), !data["inverse"].toBool(),
        data["num_heads"].toOptional<int64_t>());
    return {grad, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor rotary_embedding_autograd(const Tensor& input, const Tensor& cos, const Tensor& sin, bool interleaved,
                                 c10::string_view layout, c10::SymInt offset, const OptionalTensor& positions,
                                 bool inverse, std::optional<int64_t> num_heads) {
  const std::pair<const char*, const Tensor&> tables[] = {{"cos", cos}, {"sin", sin}};
  for (const auto& [name, table] : tables) {
    FASTLLM_CHECK(!at::GradMode::is_enabled() || !wants_gradient(table), kOp, name,
                  "not require a gradient: the tables are constants", "one that does");
  }
  return RotaryEmbedding::apply(input, cos, sin, interleaved, layout, offset, positions, inverse, num_heads);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastllm, m) {
  m.def(
      "rotary_embedding(Tensor input, Tensor cos, Tensor sin, bool interleaved=False, str layout=\"bhtd\", "
      "SymInt offset=0, Tensor? positions=None, bool inverse=False, int? num_heads=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastllm, CPU, m) {
  m.impl("rotary_embedding", rotary_embedding_cpu);
}

TORCH_LIBRARY_IMPL(fastllm, Autograd, m) {
  m.impl("rotary_embedding", rotary_embedding_autograd);
}

}  // namespace fastllm
