// The gradients of layer norm, RMS norm and dropout_add_layer_norm. With g = grad_output weight and xhat the normalised
// row: grad_normalized = rstd (g - mean(g) - xhat mean(g xhat)), the middle term for layer norm only, plus what came
// for the residual stream; the parameters' gradients are sums over rows.
//
// Bound by memory: 3 sizeof(T) bytes an element (read the row and its gradient, write the result), one more with a
// gradient of the residual stream, one more with dropout. Partial sums add 8 bytes a column and group of rows, twice,
// and stay in L2. Expected of an H100: 90% of what a copy reaches where there are 16 rows a group or more.
// A thread keeps 2 packs of 16 bytes of the row and of its gradient, loads the next row's while it works on one, and
// sums its 16 columns (of three parameters at most) in registers over all the rows it sees: 48 sums, 32 words of rows,
// 128 registers in all. So 512 threads a multiprocessor, 64 bytes in flight each, 32 KiB where some 20 KiB hide
// memory's latency. They hold rows up to 16 KiB; longer ones are read twice (again from L1 or L2), and their sums are
// in shared memory, or, past its size, in the partial sums' own place.
#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/norm.h"
#include "cuda/packed.h"
#include "cuda/row_group.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kMostThreads = 512, kVectors = 2, kNarrowVectors = 8;
constexpr int kLongThreads = 1024, kLongVectors = 2, kLongWidth = 4;  // for rows that are too long for registers
constexpr int kSums = 3;  // parameters with a gradient: weight, bias, input_bias

// What both kernels do with kWidth neighbouring elements of a row.
template <typename T, int kWidth>
struct Elements {
  float grad_output[kWidth], xhat[kWidth], g[kWidth];

  __device__ __forceinline__ Elements(const NormBackwardParams& p, int64_t column, const Packed<T, kWidth>& row,
                                      const Packed<T, kWidth>& grad, float mean, float rstd) {
    float weight[kWidth];
    row.unpack(xhat);
    grad.unpack(grad_output);
    if (p.weight.data != nullptr) load_parameter<T>(p.weight, column, weight);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      xhat[j] = (xhat[j] - mean) * rstd;
      g[j] = p.weight.data != nullptr ? grad_output[j] * weight[j] : grad_output[j];
    }
  }
};

// What a row's elements have in common: its statistics, and the means of g and of g xhat.
struct Statistics {
  float mean, rstd, mean_g, mean_gx;
};

// The sums become the means, over a group's row.
__device__ __forceinline__ void finish(const NormBackwardParams& p, RowGroup group, Statistics& s, float* partial) {
  float sums[2] = {s.mean_g, s.mean_gx};
  group.reduce<Sum>(sums, partial);
  s.mean_g = p.mean != nullptr ? sums[0] / static_cast<float>(p.cols) : 0.0f;
  s.mean_gx = sums[1] / static_cast<float>(p.cols);
}

// Adds kWidth elements to the sums that become the means; leaves grad_output xhat, what the weight gets, in xhat.
template <typename T, int kWidth>
__device__ __forceinline__ void add_up(Elements<T, kWidth>& e, Statistics& s) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    s.mean_g += e.g[j];
    s.mean_gx = fmaf(e.g[j], e.xhat[j], s.mean_gx);
    e.xhat[j] *= e.grad_output[j];
  }
}

// Writes grad_normalized, and with dropout grad_input, of kWidth elements; `gradient` becomes what the input bias gets.
template <typename T, int kWidth>
__device__ __forceinline__ void write(const NormBackwardParams& p, const DropoutMask& mask, int64_t row, int64_t column,
                                      const Packed<T, kWidth>& normalized, const Packed<T, kWidth>& grad_output,
                                      const Packed<T, kWidth>& grad_residual, const Statistics& s,
                                      float (&gradient)[kWidth]) {
  using Vector = Packed<T, kWidth>;
  const int64_t index = row * p.cols + column;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) gradient[j] = 0.0f;
  if (p.grad_residual != nullptr) grad_residual.unpack(gradient);
  if (p.grad_output != nullptr) {
    const Elements<T, kWidth> e(p, column, normalized, grad_output, s.mean, s.rstd);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) gradient[j] += s.rstd * (e.g[j] - s.mean_g - e.xhat[j] * s.mean_gx);
  }
  Vector::pack(gradient).store(static_cast<T*>(p.grad_normalized) + index);
  if (p.grad_input == nullptr) return;
  float factor[kWidth];
  mask.factors(index, factor);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) gradient[j] *= factor[j];
  Vector::pack(gradient).store(static_cast<T*>(p.grad_input) + index);
}

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

struct Shared {
  float partial[2][2 * kLongThreads / kWarp];  // taken in turns: see RowGroup::reduce
};

// A block takes every gridDim.x-th set of rows, a row a group, and leaves the sums over its rows as partial sums.
template <typename T, int kWidth, int kHeld>
__global__ void __launch_bounds__(kMostThreads, 1) norm_backward_kernel(NormBackwardParams p, RowGroup group) {
  using Vector = Packed<T, kWidth>;
  using Loaded = Row<T, kWidth, kHeld>;
  Shared* shared = shared_memory<Shared>();
  const DropoutMask mask(p.dropout);
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.count();
  const auto chunk_of = [&](int64_t row) {
    return Chunk{0, row < p.rows ? static_cast<int>(p.cols / kWidth) : 0};  // without a row, come to the barriers
  };
  float sums[kSums][kHeld][kWidth] = {};
  int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  Loaded next(p, group, chunk_of(row), row);
  int turn = 0;
  for (int64_t first = row - group.index(); first < p.rows; first += step, row += step, turn ^= 1) {
    const Chunk chunk = chunk_of(row);
    const Loaded now = next;
    next = Loaded(p, group, chunk_of(row + step), row + step);
    Vector more[kHeld];
    if (p.grad_residual != nullptr) {
      group.for_each<kHeld>(chunk, [&](int i, int64_t v) {
        more[i] = Vector::load_once(static_cast<const T*>(p.grad_residual) + row * p.cols + v * kWidth);
      });
    }
    Statistics statistics{now.mean, now.rstd, 0.0f, 0.0f};
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
      finish(p, group, statistics, shared->partial[turn]);
    }
    group.for_each<kHeld>(chunk, [&](int i, int64_t v) {
      float gradient[kWidth];
      write(p, mask, row, v * kWidth, now.normalized[i], now.grad_output[i], more[i], statistics, gradient);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[2][i][j] += gradient[j];
    });
  }
  float* area = reinterpret_cast<float*>(shared + 1);  // (groups of the block, cols)
  const auto leave = [&](const ColumnSum& wanted, const float (&sum)[kHeld][kWidth]) {
    if (wanted.output == nullptr) return;
    __syncthreads();
    group.for_each<kHeld>({0, static_cast<int>(p.cols / kWidth)}, [&](int i, int64_t v) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) area[group.index() * p.cols + v * kWidth + j] = sum[i][j];
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
  leave(p.grad_input_bias, sums[2]);
}

// sums[column..] += values, in shared or global memory; each column is one thread's own.
template <int kWidth>
__device__ __forceinline__ void add_to(float* sums, int64_t column, const float (&value)[kWidth]) {
  if (sums == nullptr) return;
  Pack<float, kWidth> pack = load<float, kWidth>(sums + column);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) pack.value[j] += value[j];
  store(sums + column, pack);
}

// A block of one group for a row that is too long for registers. Four columns a vector: their sums are one 16-byte
// access of shared memory, without conflicts of banks.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kLongThreads, 1)
    norm_backward_long_kernel(NormBackwardParams p, RowGroup group, bool sums_in_shared) {
  using Vector = Packed<T, kWidth>;
  Shared* shared = shared_memory<Shared>();
  const DropoutMask mask(p.dropout);
  const int64_t vectors = p.cols / kWidth;
  float* area = reinterpret_cast<float*>(shared + 1);
  const auto sums_of = [&](const ColumnSum& wanted) -> float* {
    if (wanted.output == nullptr) return nullptr;
    float* sums = sums_in_shared ? area : wanted.partials + blockIdx.x * p.cols;
    area += p.cols;
    for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) store(sums + v * kWidth, Pack<float, kWidth>{});
    return sums;
  };
  float* const sums[kSums] = {sums_of(p.grad_weight), sums_of(p.grad_bias), sums_of(p.grad_input_bias)};
  int turn = 0;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x, turn ^= 1) {
    const float mean = p.mean != nullptr ? p.mean[row] : 0.0f, rstd = p.rstd[row];
    const T* normalized = static_cast<const T*>(p.normalized) + row * p.cols;
    const T* grad_output = static_cast<const T*>(p.grad_output) + row * p.cols;
    const T* grad_residual = static_cast<const T*>(p.grad_residual) + row * p.cols;
    Vector x[kLongVectors], grad[kLongVectors], more[kLongVectors];
    Statistics statistics{mean, rstd, 0.0f, 0.0f};
    for (int c = 0; p.grad_output != nullptr && c < group.chunks; ++c) {
      const Chunk chunk = group.chunk<kLongVectors>(vectors, c);
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        x[i] = Vector::load(normalized + v * kWidth);
        grad[i] = Vector::load(grad_output + v * kWidth);
      });
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        Elements<T, kWidth> e(p, v * kWidth, x[i], grad[i], mean, rstd);
        add_up(e, statistics);
        add_to(sums[0], v * kWidth, e.xhat);
        add_to(sums[1], v * kWidth, e.grad_output);
      });
    }
    finish(p, group, statistics, shared->partial[turn]);
    for (int c = 0; c < group.chunks; ++c) {
      const Chunk chunk = group.chunk<kLongVectors>(vectors, c);
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        if (p.grad_output != nullptr) {
          x[i] = Vector::load(normalized + v * kWidth);
          grad[i] = Vector::load(grad_output + v * kWidth);
        }
        if (p.grad_residual != nullptr) more[i] = Vector::load_once(grad_residual + v * kWidth);
      });
      group.for_each<kLongVectors>(chunk, [&](int i, int64_t v) {
        float gradient[kWidth];
        write(p, mask, row, v * kWidth, x[i], grad[i], more[i], statistics, gradient);
        add_to(sums[2], v * kWidth, gradient);
      });
    }
  }
  if (!sums_in_shared) return;
  const auto leave = [&](const ColumnSum& wanted, const float* sums) {
    if (sums == nullptr) return;
    for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
      store(wanted.partials + blockIdx.x * p.cols + v * kWidth, load<float, kWidth>(sums + v * kWidth));
    }
  };
  leave(p.grad_weight, sums[0]);
  leave(p.grad_bias, sums[1]);
  leave(p.grad_input_bias, sums[2]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

// Two blocks for each of an H100's 132 multiprocessors; a constant, as the order of sums depends on it.
constexpr int64_t kMostGroups = 2 * 132;
// Long rows: one block each, and partial sums of 64 MiB a parameter.
constexpr int64_t kMostLongGroups = 132, kMostLongSums = int64_t{1} << 24;

struct Plan {
  bool wide, long_rows;
  RowGroup group;
  int64_t groups;  // of rows, a block and a partial sum each
};

Plan plan(const NormBackwardParams& p) {
  const int64_t bytes = p.dtype == DType::kFloat32 ? 4 : 2;
  bool wide = p.cols * bytes % 16 == 0;
  for (const void* pointer : {p.grad_output, p.grad_residual, p.normalized, p.weight.data,
                              static_cast<const void*>(p.grad_normalized), static_cast<const void*>(p.grad_input)}) {
    wide = wide && is_aligned(pointer);
  }
  const int64_t width = wide ? 16 / bytes : 1, per_lane = wide ? kVectors : kNarrowVectors;
  const bool long_rows = p.cols > width * per_lane * kMostThreads;
  const bool sums = p.grad_weight.output || p.grad_bias.output || p.grad_input_bias.output;
  if (long_rows) {
    const int64_t long_width = wide ? kLongWidth : 1;
    const int64_t most = std::min(kMostLongGroups, std::max<int64_t>(1, kMostLongSums / p.cols));
    return {wide, true, RowGroup::of(p.cols / long_width, long_width * bytes, kLongVectors, kLongThreads),
            sums ? std::min(p.rows, most) : p.rows};
  }
  const RowGroup group = RowGroup::of(p.cols / width, width * bytes, per_lane, kMostThreads);
  const int64_t sets = (p.rows + group.rows_per_block() - 1) / group.rows_per_block();
  return {wide, false, group, sums ? std::min(kMostGroups, (sets + 1) / 2) : sets};
}

template <typename T, int kWidth, int kHeld>
cudaError_t launch_rows(const NormBackwardParams& p, const Plan& plan, cudaStream_t stream) {
  const size_t sums = static_cast<size_t>(plan.group.rows_per_block() * p.cols) * sizeof(float);
  const Launch how{dim3(static_cast<unsigned>(plan.groups)), dim3(plan.group.threads()), sizeof(Shared) + sums};
  return launch<norm_backward_kernel<T, kWidth, kHeld>>(how, stream, p, plan.group);
}

int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

template <typename T, int kWidth>
cudaError_t launch_long_rows(const NormBackwardParams& p, const Plan& plan, cudaStream_t stream) {
  int64_t bytes = sizeof(Shared);
  for (const ColumnSum* sum : {&p.grad_weight, &p.grad_bias, &p.grad_input_bias}) {
    if (sum->output != nullptr) bytes += p.cols * static_cast<int64_t>(sizeof(float));
  }
  const bool sums_in_shared = bytes <= most_shared_bytes();
  const Launch how{dim3(static_cast<unsigned>(plan.groups)), dim3(plan.group.threads()),
                   sums_in_shared ? static_cast<size_t>(bytes) : sizeof(Shared)};
  return launch<norm_backward_long_kernel<T, kWidth>>(how, stream, p, plan.group, sums_in_shared);
}

template <typename T>
cudaError_t launch_dtype(const NormBackwardParams& p, const Plan& plan, cudaStream_t stream) {
  if (plan.long_rows) {
    return plan.wide ? launch_long_rows<T, kLongWidth>(p, plan, stream) : launch_long_rows<T, 1>(p, plan, stream);
  }
  return plan.wide ? launch_rows<T, kWidest<T>, kVectors>(p, plan, stream)
                   : launch_rows<T, 1, kNarrowVectors>(p, plan, stream);
}

}  // namespace

int64_t norm_backward_groups(const NormBackwardParams& params) {
  return plan(params).groups;
}

cudaError_t norm_backward(const NormBackwardParams& params, cudaStream_t stream) {
  const Plan how = plan(params);
  if (how.groups > 0 && params.cols > 0) {
    const cudaError_t error = dispatch(
        params.dtype, [&](auto type) { return launch_dtype<typename decltype(type)::type>(params, how, stream); });
    if (error != cudaSuccess) return error;
  }
  return column_sums(how.groups, params.cols, params.grad_weight, params.grad_bias, params.grad_input_bias, stream);
}

}  // namespace fastllm::cuda
