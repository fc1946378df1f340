// The randomness argument of every op with dropout: rng_state, an int64 tensor (2,) of (seed, offset) on the op's
// device, or none for no dropout at all.
#pragma once

#include "common/philox.h"
#include "ops/op.h"

namespace fastllm {

inline void check_dropout(const char* op, double p, const OptionalTensor& rng_state, const Tensor& input,
                          const char* name = "p") {
  FASTLLM_CHECK(p >= 0.0 && p <= 1.0, op, name, "be in [0, 1]", p);
  if (!rng_state) return;
  FASTLLM_CHECK_TYPE(rng_state->scalar_type() == at::kLong, op, "rng_state", "be int64", rng_state->scalar_type());
  check_shape(op, "rng_state", *rng_state, {2});
  check_same_device(op, "rng_state", *rng_state, "input", input);
}

// For CPU kernels: checked, and with the values of rng_state.
inline std::optional<DropoutParams> dropout_params(const char* op, double p, const OptionalTensor& rng_state,
                                                   const Tensor& input, const char* name = "p") {
  check_dropout(op, p, rng_state, input, name);
  if (!rng_state) return std::nullopt;
  const Tensor state = rng_state->contiguous();
  const int64_t* value = state.const_data_ptr<int64_t>();
  return DropoutParams::make(p, static_cast<uint64_t>(value[0]), static_cast<uint64_t>(value[1]));
}

}  // namespace fastllm
