// Single-precision matrix products: what linear layers, their gradients and linear + cross-entropy spend their time in.
// Knows nothing of tensors or autograd.
//
// The result is the same bit for bit from run to run and for any number of threads, and an element of C depends on its
// own row of A and column of B alone, never on M, N or on where the tile edges fall: a row computed alone equals the
// same row in a batch.
#pragma once

#include <cstdint>

namespace fastllm {

// A row-major matrix with `stride` floats from one row to the next; `transposed`: what is meant is its transpose.
struct GemmOperand {
  const float* data;
  int64_t stride;
  bool transposed = false;
};

struct GemmOptions {
  bool accumulate = false;      // C += A B instead of C = A B
  const float* bias = nullptr;  // (N): added to every row of C
  float* row_sums = nullptr;    // (M): receives the sums over K of A's rows; A must be transposed. With
                                // `accumulate` they are added to. In dW = dY^T X they are the bias's gradient.
};

// C (M, N) = A (M, K) B (K, N), with `c_stride` floats from one row of C to the next. C overlaps neither input.
//   forward          Y  = X W^T + b   gemm(tokens, out, in, {x, in}, {w, in, true}, y, out, {.bias = b})
//   input gradient   dX = dY W        gemm(tokens, in, out, {dy, out}, {w, in}, dx, in)
//   weight gradient  dW = dY^T X      gemm(out, in, tokens, {dy, out, true}, {x, in}, dw, in, {.row_sums = db})
// It uses scratch slots 2 and 3 of common/parallel.h.
void gemm(int64_t m, int64_t n, int64_t k, GemmOperand a, GemmOperand b, float* c, int64_t c_stride,
          const GemmOptions& options = {});

}  // namespace fastllm
