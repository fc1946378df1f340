// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and how dropout uses it.
// One source for host and device.
//
// Dropout's contract: key = seed, counter = (i / 8, offset); element i of the contiguous tensor takes 16 bits of its
// block's 128, and is kept iff those bits >= threshold = round(p * 65536). So the mask depends on (seed, offset, i)
// alone: not on device, tiling, thread count or memory layout.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTLLM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTLLM_HOST_DEVICE inline
#endif

namespace fastllm {

struct Philox {
  static constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  static constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  static constexpr int kRounds = 10;
  static constexpr int kElements = 8;  // 16-bit draws a block of 128 bits
};

struct PhiloxBlock {
  uint32_t word[4];

  // The 16 bits of element `index` (0..7) of the block, low half of a word first.
  FASTLLM_HOST_DEVICE uint32_t bits16(int index) const { return (word[index >> 1] >> ((index & 1) * 16)) & 0xFFFF; }
};

FASTLLM_HOST_DEVICE PhiloxBlock philox(uint64_t seed, uint64_t block, uint64_t offset) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset), c3 = static_cast<uint32_t>(offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < Philox::kRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(Philox::kMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(Philox::kMultiplier1) * c2;
    const uint32_t n0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = n0;
    c2 = n2;
    k0 += Philox::kWeyl0;
    k1 += Philox::kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// What a dropout kernel needs to know. Made on the host once an op; threshold 0 keeps everything.
struct DropoutParams {
  uint64_t seed = 0;
  uint64_t offset = 0;
  uint32_t threshold = 0;  // drop iff bits < threshold; 65536 drops everything
  float scale = 1.0f;      // 65536 / (65536 - threshold): exactly one over the share that is kept

  static DropoutParams make(double p, uint64_t seed, uint64_t offset) {
    const uint32_t threshold = static_cast<uint32_t>(p * 65536.0 + 0.5);
    const float scale = threshold < 65536 ? 65536.0f / static_cast<float>(65536 - threshold) : 0.0f;
    return {seed, offset, threshold, scale};
  }
};

}  // namespace fastllm
