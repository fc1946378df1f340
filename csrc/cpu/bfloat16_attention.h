// Attention of bfloat16 with its products on AMX's tiles, summed in float32; scores, their softmax and its gradient are
// what cpu/attention.h has. Weights and the scores' gradients are rounded to bfloat16 where they enter a product.
#pragma once

#include "cpu/attention.h"

namespace fastllm {

// Whether this build has it: for CPUs with AMX. Without it the others here must not be called.
bool has_bfloat16_attention();

void bfloat16_attention_forward(const Attention<BFloat16>& a, const Heads<BFloat16*>& output,
                                SoftmaxStatistics<float>* statistics);

void bfloat16_attention_backward(const Attention<BFloat16>& a, const AttentionGradients<BFloat16>& g);

}  // namespace fastllm
