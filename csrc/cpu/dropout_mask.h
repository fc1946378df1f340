// Dropout's mask on the CPU, as multipliers: 0 where an element is dropped, params.scale where it is kept.
// The contract (which bits decide which element) is in common/philox.h.
#pragma once

#include "common/philox.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastllm {

// How many multipliers past `count` dropout_multipliers may write or skip: callers make their buffers this much larger.
constexpr int64_t kDropoutMargin = 9 * Philox::kElements;

// The Philox blocks first, .., first + 7, in memory order: words[8 * 4].
#if defined(__AVX2__)
// A 64-bit lane a block, 4 blocks a register. vpmuludq reads the low half of a lane only, so the rounds leave rubbish
// in the high halves and the last step drops it: 8 instructions a round for 32 elements.
inline void philox_8_blocks(const DropoutParams& dropout, uint64_t first, uint32_t* words) {
  const __m256i multiplier0 = _mm256_set1_epi64x(Philox::kMultiplier0);
  const __m256i multiplier1 = _mm256_set1_epi64x(Philox::kMultiplier1);
  __m256i c0[2], c1[2], c2[2], c3[2];
  for (int half = 0; half < 2; ++half) {
    const uint64_t base = first + 4 * half;
    c0[half] = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(base)), _mm256_setr_epi64x(0, 1, 2, 3));
    c1[half] = _mm256_srli_epi64(c0[half], 32);
    c2[half] = _mm256_set1_epi64x(static_cast<int64_t>(dropout.offset));
    c3[half] = _mm256_srli_epi64(c2[half], 32);
  }
  uint32_t k0 = static_cast<uint32_t>(dropout.seed), k1 = static_cast<uint32_t>(dropout.seed >> 32);
  for (int round = 0; round < Philox::kRounds; ++round) {
    const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
    for (int half = 0; half < 2; ++half) {
      const __m256i product0 = _mm256_mul_epu32(c0[half], multiplier0);
      const __m256i product1 = _mm256_mul_epu32(c2[half], multiplier1);
      c0[half] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c1[half]), key0);
      c2[half] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3[half]), key1);
      c1[half] = product1;
      c3[half] = product0;
    }
    k0 += Philox::kWeyl0;
    k1 += Philox::kWeyl1;
  }
  for (int half = 0; half < 2; ++half) {
    const __m256i words01 = _mm256_blend_epi32(c0[half], _mm256_slli_epi64(c1[half], 32), 0xAA);
    const __m256i words23 = _mm256_blend_epi32(c2[half], _mm256_slli_epi64(c3[half], 32), 0xAA);
    const __m256i even = _mm256_unpacklo_epi64(words01, words23), odd = _mm256_unpackhi_epi64(words01, words23);
    __m256i* out = reinterpret_cast<__m256i*>(words + 16 * half);
    _mm256_store_si256(out, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_store_si256(out + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}
#else
inline void philox_8_blocks(const DropoutParams& dropout, uint64_t first, uint32_t* words) {
  for (int i = 0; i < 8; ++i) {
    const PhiloxBlock block = philox(dropout.seed, first + i, dropout.offset);
    for (int word = 0; word < 4; ++word) words[4 * i + word] = block.word[word];
  }
}
#endif

// Multipliers of elements first, .., first + count - 1 of the contiguous tensor. Writes into `buffer`, which must hold
// count + kDropoutMargin values, and returns the address in it of element `first`.
template <typename C>
inline const C* dropout_multipliers(const DropoutParams& dropout, int64_t first, int64_t count, C* buffer) {
  constexpr int64_t kStep = 8 * Philox::kElements;
  const int64_t skip = first % Philox::kElements;
  const uint64_t block = static_cast<uint64_t>(first / Philox::kElements);
  const int32_t threshold = static_cast<int32_t>(dropout.threshold);
  const C scale = static_cast<C>(dropout.scale);
  for (int64_t done = 0; done < skip + count; done += kStep) {
    alignas(64) uint32_t words[kStep / 2];
    philox_8_blocks(dropout, block + static_cast<uint64_t>(done / Philox::kElements), words);
    uint16_t bits[kStep];
    std::memcpy(bits, words, sizeof(bits));  // little-endian, as every machine this builds for: low half first
    for (int64_t i = 0; i < kStep; ++i) {
      buffer[done + i] = static_cast<int32_t>(bits[i]) >= threshold ? scale : C(0);
    }
  }
  return buffer + skip;
}

}  // namespace fastllm
