// norm_backward for rows that registers do not hold, with the sums over rows in shared memory.
//
// Bound by memory: 3 sizeof(T) bytes an element as in norm_backward.cu, and past 32 KiB a row and its gradient once
// more from L2. Partial sums, 8 bytes a column, parameter and block, are a twentieth of that at 1,024 rows of 16-bit
// values. Expected of an H100: 85% of what a copy reaches from 8 rows a block (1,056 rows) on. A block takes a row at a
// time and is alone on its multiprocessor: two parameters' sums of 16,384 columns are 128 KiB. As no other block loads
// while it reduces, each thread has the next row (or the next chunk of a longer one) on its way while it works on one:
// 64 bytes of it and 64 of its gradient, 64 KiB a multiprocessor. That is 32 registers for what is on its way, as many
// for what is at hand, and so 128 of 512 threads. Sums take 16 bytes of shared memory an element and parameter (read
// and written): of two 0.25 clocks at 128 bytes a clock, where memory takes 0.4 for the 6 bytes.
// norm_backward_columns.cu has rows whose sums do not fit.
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/norm_backward.h"
#include "cuda/shared.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

// Sums over the block's rows in shared memory, from float `begin` on; each column is one thread's own. (An offset, not
// a pointer, so that the compiler sees shared memory.) Every 16 bytes of a vector's sums are in a plane of their own,
// in which neighbouring threads' lie side by side.
struct SharedSums {
  int begin;  // negative: not wanted

  __device__ __forceinline__ bool wanted() const { return begin >= 0; }

  // body(sums, i) for each access to the sums of a vector, which are those of its columns i and on.
  template <int kWidth, typename Body>
  __device__ __forceinline__ void for_each(int vectors, int64_t vector, Body&& body) const {
    constexpr int kStep = kFloatStep<kWidth>;
    float* sums = shared_memory<float>() + begin + vector * kStep;
#pragma unroll
    for (int i = 0; i < kWidth; i += kStep) body(sums + i * vectors, i);
  }

  template <int kWidth>
  __device__ __forceinline__ void add(int vectors, int64_t vector, const float (&value)[kWidth]) const {
    if (!wanted()) return;
    for_each<kWidth>(vectors, vector, [&](float* sums, int i) {
      constexpr int kStep = kFloatStep<kWidth>;
      Pack<float, kStep> sum = load<float, kStep>(sums);
#pragma unroll
      for (int j = 0; j < kStep; ++j) sum.value[j] += value[i + j];
      store_anywhere(sums, sum);
    });
  }
};

// In the order in which a block goes through its rows, and through a row's chunks, twice if it has several.
template <typename T, int kWidth, int kVectors>
class Reader {
 public:
  using Vector = Packed<T, kWidth>;
  Vector x[kVectors], grad[kVectors];

  __device__ __forceinline__ Reader(const NormBackwardParams& p, RowGroup group) : row_(blockIdx.x) { fetch(p, group); }

  // The next chunk's loads begin; what was fetched before must have been copied away.
  __device__ __forceinline__ void fetch(const NormBackwardParams& p, RowGroup group) {
    if (row_ >= p.rows || p.grad_output == nullptr) return;
    const int64_t start = row_ * p.cols;
    const Chunk chunk = group.chunk<kVectors>(p.cols / kWidth, read_ < group.chunks ? read_ : read_ - group.chunks);
    group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
      const int64_t at = start + v * kWidth;
      x[i] = Vector::load(static_cast<const T*>(p.normalized) + at);
      grad[i] = Vector::load(static_cast<const T*>(p.grad_output) + at);
    });
    if (++read_ < (group.chunks > 1 ? 2 * group.chunks : 1)) return;
    read_ = 0;
    row_ += gridDim.x;
  }

 private:
  int64_t row_;
  int read_ = 0;  // chunks of the row
};

// Block b takes rows b, b + gridDim.x, and so on.
template <typename T, int kWidth, int kVectors>
__global__ void __launch_bounds__(kLongThreads, 1)
    norm_backward_long_kernel(NormBackwardParams p, RowGroup group, float one_over_cols, SharedSums weight_sums,
                              SharedSums bias_sums, SharedSums input_bias_sums) {
  using Vector = Packed<T, kWidth>;
  NormBackwardShared* shared = shared_memory<NormBackwardShared>();
  const int vectors = static_cast<int>(p.cols / kWidth);
  // body(sums, sum, column) for every access to this thread's sums.
  const auto for_each_sum = [&](auto&& body) {
    const auto of = [&](const SharedSums& sums, const ColumnSum& sum) {
#pragma unroll 1
      for (int64_t v = threadIdx.x; sums.wanted() && v < vectors; v += blockDim.x) {
        sums.for_each<kWidth>(vectors, v, [&](float* at, int i) { body(at, sum, v * kWidth + i); });
      }
    };
    of(weight_sums, p.grad_weight);
    of(bias_sums, p.grad_bias);
    of(input_bias_sums, p.grad_input_bias);
  };
  using Sums = Pack<float, kFloatStep<kWidth>>;
  for_each_sum([](float* at, const ColumnSum&, int64_t) { store_anywhere(at, Sums{}); });
  Reader<T, kWidth, kVectors> reader(p, group);

#pragma unroll 1
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t start = row * p.cols;
    Vector x[kVectors], grad[kVectors];
    const auto next = [&] {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) x[i] = reader.x[i], grad[i] = reader.grad[i];
      reader.fetch(p, group);
    };
    Statistics statistics{p.mean != nullptr ? p.mean[row] : 0.0f, p.rstd[row]};
#pragma unroll 1
    for (int c = 0; p.grad_output != nullptr && c < group.chunks; ++c) {
      next();
      Statistics part{statistics.mean, statistics.rstd};
      group.for_each<kVectors>(group.chunk<kVectors>(vectors, c), [&](int i, int64_t v) {
        Elements<T, kWidth> e(p, v * kWidth, x[i], grad[i], statistics.mean, statistics.rstd);
        add_up(e, part);
        weight_sums.add(vectors, v, e.xhat);
        bias_sums.add(vectors, v, e.grad_output);
      });
      add_up(part, statistics);
    }
    finish(p, group, one_over_cols, statistics, shared->partial[row / gridDim.x % 2]);
#pragma unroll 1
    for (int c = 0; c < group.chunks; ++c) {
      if (group.chunks > 1) next();
      const DropoutMask mask(p.dropout);  // here, not once for all: six registers less where the sums are made
      const Chunk chunk = group.chunk<kVectors>(vectors, c);
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // all of grad_residual at once takes too many registers
        constexpr int kHalf = kVectors / 2;
        const auto for_each = [&](auto&& body) {
          group.for_each<kVectors>(chunk, [&](int i, int64_t v) {
            if (i / kHalf == half) body(i, v);
          });
        };
        Vector more[kHalf];
        if (p.grad_residual != nullptr) {
          for_each([&](int i, int64_t v) {
            more[i % kHalf] = Vector::load_once(static_cast<const T*>(p.grad_residual) + start + v * kWidth);
          });
        }
        for_each([&](int i, int64_t v) {
          float gradient[kWidth];
          write<true>(p, mask, start, v * kWidth, x[i], grad[i], more[i % kHalf], statistics, gradient);
          input_bias_sums.add(vectors, v, gradient);
        });
      }
    }
  }
  for_each_sum([&](const float* at, const ColumnSum& sum, int64_t column) {
    store(sum.partials + blockIdx.x * p.cols + column, load<float, kFloatStep<kWidth>>(at));
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

template <typename T, int kWidth>
cudaError_t launch_width(const NormBackwardParams& p, RowGroup group, int64_t blocks, cudaStream_t stream) {
  int64_t floats = sizeof(NormBackwardShared) / sizeof(float);
  const auto place = [&](const ColumnSum& sum) {
    if (sum.output == nullptr) return SharedSums{-1};
    const SharedSums sums{static_cast<int>(floats)};
    floats += p.cols;
    return sums;
  };
  const SharedSums weight = place(p.grad_weight), bias = place(p.grad_bias), input_bias = place(p.grad_input_bias);
  const Launch how{dim3(static_cast<unsigned>(blocks)), dim3(group.threads()),
                   static_cast<size_t>(norm_backward_long_bytes(p))};
  return launch<norm_backward_long_kernel<T, kWidth, kLongVectors<kWidth>>>(
      how, stream, p, group, 1.0f / static_cast<float>(p.cols), weight, bias, input_bias);
}

}  // namespace

int64_t norm_backward_long_bytes(const NormBackwardParams& params) {
  int64_t bytes = sizeof(NormBackwardShared);
  for (const ColumnSum* sum : {&params.grad_weight, &params.grad_bias, &params.grad_input_bias}) {
    if (sum->output != nullptr) bytes += params.cols * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
}

cudaError_t norm_backward_long(const NormBackwardParams& params, bool wide, RowGroup group, int64_t blocks,
                               cudaStream_t stream) {
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return wide ? launch_width<T, kWidest<T>>(params, group, blocks, stream)
                : launch_width<T, 1>(params, group, blocks, stream);
  });
}

}  // namespace fastllm::cuda
