// The feed-forward network of a Transformer block: two matrix products with a GELU between, which is computed on each
// block of the first product while that is in cache.
#pragma once

#include "cpu/gemm.h"

namespace fastllm {

// M rows, C channels in, F hidden, O out
struct FeedForward {
  int64_t m, c, f, o;
  bool tanh;                     // approximate="tanh"
  GemmOperand input;             // (M, C)
  GemmOperand expand, contract;  // transposed weights: (C, F) and (F, O)
};

// pre (M, F) = input expand + bias, hidden (M, F) = gelu(pre), output (M, O) = hidden contract + bias. Biases may be
// null.
void feed_forward(const FeedForward& net, const float* expand_bias, const float* contract_bias, float* pre,
                  float* hidden, float* output);

// Null gradients are not wanted; a bias's comes with its weight's.
struct FeedForwardGradients {
  GemmOperand grad_output;                                 // (M, O)
  float* input;                                            // (M, C)
  float *expand, *expand_bias, *contract, *contract_bias;  // (F, C), (F), (O, F), (O)
};

// From pre alone: hidden (M, F) is made again, beside grad_pre (M, F).
void feed_forward_backward(const FeedForward& net, const float* pre, const FeedForwardGradients& gradients,
                           float* hidden, float* grad_pre);

}  // namespace fastllm
