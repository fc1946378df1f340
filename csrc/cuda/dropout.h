// Dropout inside a kernel: which elements of the contiguous tensor are kept, by the contract of common/philox.h.
#pragma once

#include <cuda_runtime.h>

#include "common/philox.h"

namespace fastllm::cuda {

// What a launcher passes on. (seed, offset) stay on the device until the kernel reads them: the host never waits for
// them, and a captured graph draws anew when they change.
struct Dropout {
  const int64_t* rng_state = nullptr;  // (seed, offset); null: no dropout
  uint32_t threshold = 0;              // drop iff bits < threshold
  float scale = 1.0f;
};

// A thread's view of it: what an element is multiplied with, 0 or the scale.
class DropoutMask {
 public:
  __device__ __forceinline__ explicit DropoutMask(const Dropout& dropout)
      : threshold_(dropout.rng_state ? dropout.threshold : 0), scale_(dropout.rng_state ? dropout.scale : 1.0f) {
    if (dropout.rng_state) {
      seed_ = static_cast<uint64_t>(dropout.rng_state[0]);
      offset_ = static_cast<uint64_t>(dropout.rng_state[1]);
    }
  }

  __device__ __forceinline__ bool is_off() const { return threshold_ == 0; }

  // The draws of elements [8 block, 8 block + 8), and an element's factor by its 16 bits of them.
  __device__ __forceinline__ PhiloxBlock draw(int64_t block) const {
    return philox(seed_, static_cast<uint64_t>(block), offset_);
  }
  __device__ __forceinline__ float factor_of(uint32_t bits) const { return bits >= threshold_ ? scale_ : 0.0f; }

  // The factors of elements [index, index + kCount); kCount divides 8 and index is a multiple of it: one Philox block.
  template <int kCount>
  __device__ __forceinline__ void factors(int64_t index, float (&factor)[kCount]) const {
    static_assert(Philox::kElements % kCount == 0, "the elements share one Philox block");
    PhiloxBlock block = draw(index / Philox::kElements);
    // What was asked for is brought to the front by selections: registers have no index known at run time.
    if (kCount <= 4 && (index & 4) != 0) block.word[0] = block.word[2], block.word[1] = block.word[3];
    if (kCount <= 2 && (index & 2) != 0) block.word[0] = block.word[1];
    if (kCount == 1 && (index & 1) != 0) block.word[0] >>= 16;
#pragma unroll
    for (int i = 0; i < kCount; ++i) factor[i] = factor_of(block.bits16(i));
  }

  __device__ __forceinline__ float factor(int64_t index) const {
    float one[1];
    factors<1>(index, one);
    return one[0];
  }

 private:
  uint64_t seed_ = 0, offset_ = 0;
  uint32_t threshold_;
  float scale_;
};

}  // namespace fastllm::cuda
