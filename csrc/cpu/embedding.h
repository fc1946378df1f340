// Token embedding with optional position embedding, and its deterministic gradient.
#pragma once

#include <cstdint>

namespace fastllm {

// output[i] = weight[token[i]] + position[offset + i % length]; position may be null.
template <typename T>
void embedding_forward(int64_t count, int64_t length, int64_t channels, const int64_t* tokens, const T* weight,
                       const T* position, int64_t offset, T* output);

// grad_weight (vocabulary x channels): each row is the sum, in order, of grad_output where its token stands; rows of
// tokens that do not occur, and of `padding`, are zero.
template <typename T>
void embedding_backward(int64_t count, int64_t vocabulary, int64_t channels, const int64_t* tokens, int64_t padding,
                        const T* grad_output, T* grad_weight);

// grad_position (positions x channels): sums over the batch, in order; untouched rows are zero.
template <typename T>
void position_backward(int64_t count, int64_t length, int64_t positions, int64_t channels, int64_t offset,
                       const T* grad_output, T* grad_position);

}  // namespace fastllm
