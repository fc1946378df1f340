// Single-precision matrix products for the layers' linear maps. Same bits for any number of threads.
#pragma once

#include <cstdint>

namespace fastllm {

// A row-major matrix, or the transpose of one: element (i, j) is data[i * stride + j], transposed data[j * stride + i].
struct Matrix {
  const float* data;
  int64_t stride;
  bool transposed = false;
};

struct GemmOptions {
  const float* bias = nullptr;  // n floats, added to every row
  bool accumulate = false;      // add to C instead of overwriting it (then bias must be null)
};

// C (m x n, row-major with row stride ldc) = A (m x k) B (k x n). Every element is summed over k in ascending order.
void gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, float* c, int64_t ldc,
          const GemmOptions& options = {});

// out[j] = sum over i of a[i * stride + j], for j < n: the gradient of a bias.
void column_sums(int64_t m, int64_t n, const float* a, int64_t stride, float* out);

}  // namespace fastllm
