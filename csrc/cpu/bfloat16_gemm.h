// Matrix products of bfloat16, summed in float32. Knows nothing of tensors or autograd.
//
// The result is the same bit for bit from run to run and for any number of threads, and an element of C depends on its
// own row of A and column of B alone, as cpu/gemm.h promises for float32.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace fastllm {

// Whether this build has products of bfloat16: for CPUs with AMX. Without them the others here must not be called.
bool has_bfloat16_gemm();

// A row-major matrix with `stride` elements from one row to the next; `transposed`: what is meant is its transpose.
struct BFloat16Operand {
  const c10::BFloat16* data;
  int64_t stride;
  bool transposed = false;
};

struct BFloat16GemmOptions {
  bool accumulate = false;              // C += A B instead of C = A B
  const c10::BFloat16* bias = nullptr;  // (N): added to every row of C, before C is rounded
  float* row_sums = nullptr;            // (M): receives the sums over K of A's rows; A must be transposed. With
                                        // `accumulate` they are added to.
};

// C (M, N) = A (M, K) B (K, N), with `c_stride` elements from one row of C to the next; Out is float or c10::BFloat16.
// C overlaps neither input. It uses scratch slots 2 and 3 of common/parallel.h.
template <typename Out>
void gemm(int64_t m, int64_t n, int64_t k, BFloat16Operand a, BFloat16Operand b, Out* c, int64_t c_stride,
          const BFloat16GemmOptions& options = {});

}  // namespace fastllm
