// The gradients of layer norm, RMS norm and dropout_add_layer_norm. With g = grad_output weight and xhat the normalised
// row: grad_normalized = rstd (g - mean(g) - xhat mean(g xhat)), the middle term for layer norm only, plus what came
// for the residual stream; the parameters' gradients are sums over rows.
//
// Bound by memory: 3 sizeof(T) bytes an element (read the row and its gradient, write the result), one more with a
// gradient of the residual stream, one more with dropout. Partial sums add 8 bytes a column and group of rows, twice,
// and stay in L2. Expected of an H100: 90% of what a copy reaches where there are 16 rows a group or more.
// A thread holds 2 packs of 16 bytes of the row and of its gradient and sums its 16 columns in registers, over all the
// rows it sees: 32 sums and the next row's packs, which are on their way while it works on one; or, with a residual
// stream, 48 sums and 2 packs more. That is 128 registers and 512 threads a multiprocessor, with 64 bytes or more in
// flight each: 32 KiB, where some 20 KiB hide memory's latency. They hold rows of up to 16 KiB: norm_backward_long.cu
// and norm_backward_columns.cu have longer ones. 264 blocks of 256 threads are one wave on an H100.
#include "cuda/norm_backward.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kMostThreads = 512, kVectors = 2, kNarrowVectors = 8;
constexpr int kSums = 3;  // parameters with a gradient: weight, bias, input_bias

template <typename T, int kWidth, int kHeld>
struct Row {
  Packed<T, kWidth> normalized[kHeld], grad_output[kHeld];
  float mean = 0.0f, rstd = 0.0f;

  Row() = default;
  __device__ __forceinline__ Row(const NormBackwardParams& p, RowGroup group, const Chunk& chunk, int64_t row) {
    if (chunk.count == 0) return;
    const int64_t start = row * p.cols;
    group.for_each<kHeld>(chunk, [&](int i, int64_t v) {
      const int64_t index = start + v * kWidth;
      normalized[i] = Packed<T, kWidth>::load_once(static_cast<const T*>(p.normalized) + index);
      if (p.grad_output != nullptr) {
        grad_output[i] = Packed<T, kWidth>::load_once(static_cast<const T*>(p.grad_output) + index);
      }
    });
    if (p.mean != nullptr) mean = p.mean[row];
    rstd = p.rstd[row];
  }
};

// A block takes every gridDim.x-th set of rows, a row a group, and leaves the sums over its rows as partial sums.
template <typename T, int kWidth, int kHeld, bool kResidual>
__global__ void __launch_bounds__(kMostThreads, 1)
    norm_backward_kernel(NormBackwardParams p, RowGroup group, float one_over_cols) {
  using Vector = Packed<T, kWidth>;
  using Loaded = Row<T, kWidth, kHeld>;
  NormBackwardShared* shared = shared_memory<NormBackwardShared>();
  const DropoutMask mask(p.dropout);
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.count();
  const auto chunk_of = [&](int64_t row) {
    return Chunk{0, row < p.rows ? static_cast<int>(p.cols / kWidth) : 0};  // without a row, come to the barriers
  };
  float sums[kSums][kHeld][kWidth] = {};
  int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  Loaded next;
  if constexpr (!kResidual) next = Loaded(p, group, chunk_of(row), row);
  int turn = 0;
  for (; row - group.index() < p.rows; row += step, turn ^= 1) {
    const Chunk chunk = chunk_of(row);
    const Loaded now = kResidual ? Loaded(p, group, chunk, row) : next;
    if constexpr (!kResidual) next = Loaded(p, group, chunk_of(row + step), row + step);
    const int64_t start = row * p.cols;
    Vector more[kHeld];
    if (kResidual && p.grad_residual != nullptr) {
      group.for_each<kHeld>(chunk, [&](int i, int64_t v) {
        more[i] = Vector::load_once(static_cast<const T*>(p.grad_residual) + start + v * kWidth);
      });
    }
    Statistics statistics{now.mean, now.rstd};
    if (p.grad_output != nullptr) {
      group.for_each<kHeld>(chunk, [&](int i, int64_t v) {
        Elements<T, kWidth> e(p, v * kWidth, now.normalized[i], now.grad_output[i], now.mean, now.rstd);
        add_up(e, statistics);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          sums[0][i][j] += e.xhat[j];
          sums[1][i][j] += e.grad_output[j];
        }
      });
      finish(p, group, one_over_cols, statistics, shared->partial[turn]);
    }
    group.for_each<kHeld>(chunk, [&](int i, int64_t v) {
      float gradient[kWidth];
      write<kResidual>(p, mask, start, v * kWidth, now.normalized[i], now.grad_output[i], more[i], statistics,
                       gradient);
#pragma unroll
      for (int j = 0; kResidual && j < kWidth; ++j) sums[2][i][j] += gradient[j];
    });
  }
  float* area = reinterpret_cast<float*>(shared + 1);  // (groups of the block, cols)
  const auto leave = [&](const ColumnSum& wanted, const float (&sum)[kHeld][kWidth]) {
    if (wanted.output == nullptr) return;
    __syncthreads();
    group.for_each<kHeld>({0, static_cast<int>(p.cols / kWidth)}, [&](int i, int64_t v) {
      store_floats<false>(area + group.index() * p.cols + v * kWidth, sum[i]);
    });
    __syncthreads();
    for (int64_t c = threadIdx.x; c < p.cols; c += blockDim.x) {
      float total = 0.0f;
      for (int g = 0; g < group.count(); ++g) total += area[g * p.cols + c];
      wanted.partials[blockIdx.x * p.cols + c] = total;
    }
  };
  leave(p.grad_weight, sums[0]);
  leave(p.grad_bias, sums[1]);
  if constexpr (kResidual) leave(p.grad_input_bias, sums[2]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

// Two blocks for each of an H100's 132 multiprocessors; a constant, as the order of sums depends on it.
constexpr int64_t kMostGroups = 2 * 132;
// Long rows: one block each, and partial sums of 64 MiB a parameter.
constexpr int64_t kMostLongGroups = 132, kMostLongSums = int64_t{1} << 24;

// `most` groups, or as many times that as leave a group 256 sets of rows: a sum of many more would be off, as what is
// added is small beside it.
int64_t most_groups(int64_t sets, int64_t most) {
  constexpr int64_t kSets = 256;
  return most * std::max<int64_t>(1, (sets + most * kSets - 1) / (most * kSets));
}

// Where sums over rows are made. How they are is the same for the last two.
enum class Sums { kRegisters, kShared, kColumns };

struct Plan {
  bool wide;
  Sums sums;
  RowGroup group;
  int64_t groups;  // of rows, a block and a partial sum each
};

int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

Plan plan_long(const NormBackwardParams& p, bool wide, int64_t width) {
  const bool sums = p.grad_weight.output || p.grad_bias.output || p.grad_input_bias.output;
  const int64_t per_lane = wide ? kLongVectors<kWidest<float>> : kLongVectors<1>;
  const int64_t most =
      sums ? std::max<int64_t>(1, std::min(most_groups(p.rows, kMostLongGroups), kMostLongSums / p.cols))
           : kMostLongGroups;
  return {wide, norm_backward_long_bytes(p) <= most_shared_bytes() ? Sums::kShared : Sums::kColumns,
          RowGroup::of(p.cols / width, 16, per_lane, kLongThreads), std::min(p.rows, most)};
}

Plan plan(const NormBackwardParams& p) {
  const int64_t bytes = p.dtype == DType::kFloat32 ? 4 : 2;
  bool wide = p.cols * bytes % 16 == 0;
  for (const void* pointer : {p.grad_output, p.grad_residual, p.normalized, p.weight.data,
                              static_cast<const void*>(p.grad_normalized), static_cast<const void*>(p.grad_input)}) {
    wide = wide && is_aligned(pointer);
  }
  const int64_t width = wide ? 16 / bytes : 1, per_lane = wide ? kVectors : kNarrowVectors;
  if (p.cols > width * per_lane * kMostThreads) return plan_long(p, wide, width);
  const bool sums = p.grad_weight.output || p.grad_bias.output || p.grad_input_bias.output;
  const RowGroup group = RowGroup::of(p.cols / width, width * bytes, per_lane, kMostThreads);
  const int64_t sets = (p.rows + group.rows_per_block() - 1) / group.rows_per_block();
  return {wide, Sums::kRegisters, group, sums ? std::min(most_groups(sets, kMostGroups), (sets + 1) / 2) : sets};
}

template <typename T, int kWidth, int kHeld, bool kResidual>
cudaError_t launch_rows(const NormBackwardParams& p, const Plan& plan, cudaStream_t stream) {
  const size_t sums = static_cast<size_t>(plan.group.rows_per_block() * p.cols) * sizeof(float);
  const Launch how{dim3(static_cast<unsigned>(plan.groups)), dim3(plan.group.threads()),
                   sizeof(NormBackwardShared) + sums};
  return launch<norm_backward_kernel<T, kWidth, kHeld, kResidual>>(how, stream, p, plan.group,
                                                                   1.0f / static_cast<float>(p.cols));
}

template <typename T, bool kResidual>
cudaError_t launch_residual(const NormBackwardParams& p, const Plan& plan, cudaStream_t stream) {
  return plan.wide ? launch_rows<T, kWidest<T>, kVectors, kResidual>(p, plan, stream)
                   : launch_rows<T, 1, kNarrowVectors, kResidual>(p, plan, stream);
}

cudaError_t launch_plan(const NormBackwardParams& p, const Plan& plan, cudaStream_t stream) {
  if (plan.sums == Sums::kShared) return norm_backward_long(p, plan.wide, plan.group, plan.groups, stream);
  if (plan.sums == Sums::kColumns) return norm_backward_columns(p, plan.wide, plan.group, plan.groups, stream);
  const bool residual = p.grad_residual != nullptr || p.grad_input != nullptr || p.grad_input_bias.output != nullptr;
  return dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return residual ? launch_residual<T, true>(p, plan, stream) : launch_residual<T, false>(p, plan, stream);
  });
}

}  // namespace

NormBackwardRoom norm_backward_room(const NormBackwardParams& params) {
  const Plan how = plan(params);
  return {how.groups, how.sums == Sums::kColumns ? 2 * params.rows : 0};
}

cudaError_t norm_backward(const NormBackwardParams& params, cudaStream_t stream) {
  const Plan how = plan(params);
  if (how.groups > 0 && params.cols > 0) {
    const cudaError_t error = launch_plan(params, how, stream);
    if (error != cudaSuccess) return error;
  }
  return column_sums(how.groups, params.cols, params.grad_weight, params.grad_bias, params.grad_input_bias, stream);
}

}  // namespace fastllm::cuda
