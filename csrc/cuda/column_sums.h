// The second half of sums over rows, as gradients of parameters are: kernels leave a partial sum for each of a number
// of groups of rows, which is fixed by the shapes; these are added in a fixed order.
#pragma once

#include <cstdint>

#include "cuda/dtype.h"

namespace fastllm::cuda {

struct ColumnSum {
  float* partials = nullptr;  // (groups, cols)
  void* output = nullptr;     // (cols,); null: not wanted
  DType dtype = DType::kFloat32;
};

// output[c] = partials[0][c] + partials[1][c] + ... for each of the wanted sums; zero where there is no group.
cudaError_t column_sums(int64_t groups, int64_t cols, const ColumnSum& first, const ColumnSum& second,
                        const ColumnSum& third, cudaStream_t stream);

}  // namespace fastllm::cuda
