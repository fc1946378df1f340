// Rotary position embedding (Su et al., "RoFormer: enhanced Transformer with rotary position embedding", 2021): pairs
// of a head's elements turn by angles that grow with the token's position.
#pragma once

#include "common/rotary.h"
#include "cpu/simd.h"

namespace fastllm {

template <typename T>
void rotary_embedding(const Rotary& rotary, const T* input, const Compute<T>* cos, const Compute<T>* sin, T* output);

}  // namespace fastllm
