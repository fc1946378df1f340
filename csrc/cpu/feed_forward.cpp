#include "cpu/feed_forward.h"

#include "cpu/gelu_vec.h"

namespace fastllm {
namespace {

GemmOperand transposed(GemmOperand operand) {
  operand.transposed = !operand.transposed;
  return operand;
}

// Calls body(offset, load, store) for each vector of a block of a row-major matrix.
template <typename Body>
void for_each_in_block(int64_t stride, int64_t i0, int64_t i1, int64_t j0, int64_t j1, const Body& body) {
  for (int64_t i = i0; i < i1; ++i)
    for_each_vec<float>(j1 - j0, [&](int64_t j, auto load, auto store) { body(i * stride + j0 + j, load, store); });
}

template <bool kTanh>
void expand(const FeedForward& net, const float* bias, float* pre, float* hidden) {
  const auto activate = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    for_each_in_block(net.f, i0, i1, j0, j1, [&](int64_t at, auto load, auto store) {
      store(hidden + at, gelu_and_slope<kTanh>(load(pre + at)).value);
    });
  };
  gemm(net.m, net.f, net.c, net.input, net.expand, pre, net.f, {.bias = bias, .finish = activate});
}

// grad_pre = (grad_output contract^T) gelu'(pre), and hidden = gelu(pre) again: one exponential serves both.
template <bool kTanh>
void contract_backward(const FeedForward& net, const GemmOperand& grad_output, const float* pre, float* hidden,
                       float* grad_pre) {
  const auto differentiate = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    for_each_in_block(net.f, i0, i1, j0, j1, [&](int64_t at, auto load, auto store) {
      const auto [value, slope] = gelu_and_slope<kTanh>(load(pre + at));
      store(hidden + at, value);
      store(grad_pre + at, load(grad_pre + at) * slope);
    });
  };
  gemm(net.m, net.f, net.o, grad_output, transposed(net.contract), grad_pre, net.f, {.finish = differentiate});
}

}  // namespace

void feed_forward(const FeedForward& net, const float* expand_bias, const float* contract_bias, float* pre,
                  float* hidden, float* output) {
  net.tanh ? expand<true>(net, expand_bias, pre, hidden) : expand<false>(net, expand_bias, pre, hidden);
  gemm(net.m, net.o, net.f, {hidden, net.f}, net.contract, output, net.o, {.bias = contract_bias});
}

void feed_forward_backward(const FeedForward& net, const float* pre, const FeedForwardGradients& gradients,
                           float* hidden, float* grad_pre) {
  const GemmOperand& grad_output = gradients.grad_output;
  net.tanh ? contract_backward<true>(net, grad_output, pre, hidden, grad_pre)
           : contract_backward<false>(net, grad_output, pre, hidden, grad_pre);
  if (gradients.contract)
    gemm(net.o, net.f, net.m, transposed(grad_output), {hidden, net.f}, gradients.contract, net.f,
         {.row_sums = gradients.contract_bias});
  if (gradients.expand)
    gemm(net.f, net.c, net.m, {grad_pre, net.f, true}, net.input, gradients.expand, net.c,
         {.row_sums = gradients.expand_bias});
  if (gradients.input) gemm(net.m, net.c, net.f, {grad_pre, net.f}, transposed(net.expand), gradients.input, net.c);
}

}  // namespace fastllm
