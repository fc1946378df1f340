// The randomness argument as CUDA kernels take it: (seed, offset) stay on the device, where kernels read them.
#pragma once

#include "cuda/dropout.h"
#include "ops/dropout.h"

namespace fastllm {

struct DropoutState {
  Tensor rng_state;  // what `dropout` points to; undefined: no dropout
  cuda::Dropout dropout;

  DropoutState(const char* op, double p, const OptionalTensor& given, const Tensor& input) {
    check_dropout(op, p, given, input);
    if (!given) return;
    rng_state = given->contiguous();
    const DropoutParams params = DropoutParams::make(p, 0, 0);
    dropout = {rng_state.const_data_ptr<int64_t>(), params.threshold, params.scale};
  }
};

}  // namespace fastllm
