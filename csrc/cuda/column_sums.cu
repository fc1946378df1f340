// Sums of partial sums, column by column.
//
// 4 bytes a column and group are read, from L2 where the kernel before left them: what takes time is to wait for the
// loads. So 16 threads share a column, and the threads of a warp read 32 neighbouring columns, a whole cache line.
#include "cuda/column_sums.h"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/shared.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

constexpr int kSlices = 16;  // of the groups: one a warp

struct Sums {
  ColumnSum sum[3];
};

struct Shared {
  float slice[kSlices][kWarp];
};

__global__ void __launch_bounds__(kSlices* kWarp) column_sums_kernel(int64_t groups, int64_t cols, Sums sums) {
  Shared* shared = shared_memory<Shared>();
  const ColumnSum sum = blockIdx.y == 0 ? sums.sum[0] : blockIdx.y == 1 ? sums.sum[1] : sums.sum[2];
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float total = 0.0f;
  if (column < cols) {
#pragma unroll 8
    for (int64_t group = slice; group < groups; group += kSlices) total += sum.partials[group * cols + column];
  }
  shared->slice[slice][lane] = total;
  __syncthreads();
  if (slice != 0 || column >= cols) return;
  for (int i = 1; i < kSlices; ++i) total += shared->slice[i][lane];
  switch (sum.dtype) {
    case DType::kFloat32:
      static_cast<float*>(sum.output)[column] = total;
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(sum.output)[column] = from_float<__nv_bfloat16>(total);
      break;
    case DType::kFloat16:
      static_cast<__half*>(sum.output)[column] = from_float<__half>(total);
      break;
  }
}

}  // namespace

cudaError_t column_sums(int64_t groups, int64_t cols, const ColumnSum& first, const ColumnSum& second,
                        const ColumnSum& third, cudaStream_t stream) {
  Sums wanted;
  unsigned count = 0;
  for (const ColumnSum* sum : {&first, &second, &third}) {
    if (sum->output != nullptr) wanted.sum[count++] = *sum;
  }
  if (count == 0 || cols == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((cols + kWarp - 1) / kWarp), count);
  return launch<column_sums_kernel>({grid, kSlices * kWarp, sizeof(Shared)}, stream, groups, cols, wanted);
}

}  // namespace fastllm::cuda
