// Cross-entropy of rows of logits, its gradient from the row's statistics, and both in one launch.
//
// Bytes: forward reads a row once, 2 or 4 an element (an online softmax: Milakov & Gimelshein, "Online normalizer
// calculation for softmax", 2018); backward reads and writes it once. With both in one launch the row is read twice: a
// float32 row of 50k classes is 200 KB, so the 264 rows that an H100 works on at a time fill its L2 of 50 MB, and most
// of the second reading comes from there. All are memory-bound; in bfloat16 forward has about 17 instructions an
// element to spend and spends about 12.
//
// Rows up to kWarpClasses take a warp, 8 rows a block; longer ones a block of 512 threads, 64 registers each, so two
// blocks share a multiprocessor and have 32 to 64 KB of loads under way, twice what an H100 needs. Rows are taken last
// first: a product wrote them just before, and the last ones are still in L2.
#include "cuda/cross_entropy.h"

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/shared.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// A row
// ---------------------------------------------------------------------------------------------------------------------

template <typename T>
constexpr int kInFlight = 16 / kWidest<T>;  // loads of 16 bytes: as many as 64 registers let without spills
constexpr int kWarpRows = 8;
constexpr int kBlockThreads = 512;
constexpr int kWarpClasses = 1024;

// kRowThreads threads share a row: a warp or a block.
template <int kRowThreads>
constexpr int kThreads = kRowThreads == kWarp ? kWarp * kWarpRows : kRowThreads;
template <int kRowThreads>
constexpr int kBlocksPerProcessor = 1024 / kThreads<kRowThreads>;

struct RowShared {
  float partial[kBlockThreads / kWarp];
};

template <typename Op, int kRowThreads>
__device__ __forceinline__ float row_reduce(float value) {
  if constexpr (kRowThreads == kWarp) return warp_reduce<Op>(value);
  return block_reduce<Op, kRowThreads>(value, shared_memory<RowShared>()->partial);
}

// A row's columns: single ones up to the first 16-byte border, whole accesses up to `whole`, single ones again. A row
// of 50,257 starts anywhere. Where `to`, in which results go, has its borders elsewhere, all columns are single.
struct Columns {
  int head, whole, count;

  template <typename T>
  __device__ __forceinline__ Columns(const T* row, const T* to, int64_t columns) : count(static_cast<int>(columns)) {
    constexpr int kWidth = kWidest<T>;
    const int past_border = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == reinterpret_cast<uintptr_t>(to) % 16;
    head = aligned ? min(count, (kWidth - past_border) % kWidth) : count;
    whole = head + (count - head) / kWidth * kWidth;
  }
};

template <typename T, int kCount>
__device__ __forceinline__ void store_floats(T* to, const float (&x)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int k = 0; k < kCount; ++k) pack.value[k] = from_float<T>(x[k]);
  store<T, kCount>(to, pack);
}

// Calls body(x, column) with neighbouring elements as floats, 16 bytes of them or one.
template <int kRowThreads, bool kOnce, typename T, typename Body>
__device__ __forceinline__ void for_each(const T* row, const Columns& columns, Body&& body) {
  constexpr int kWidth = kWidest<T>;
  const int thread = threadIdx.x % kRowThreads;
  const auto one = [&](int i) {
    const float x[1] = {to_float(row[i])};
    body(x, i);
  };
  for (int i = thread; i < columns.head; i += kRowThreads) one(i);
#pragma unroll 1
  for (int start = columns.head + thread * kWidth; start < columns.whole;
       start += kRowThreads * kWidth * kInFlight<T>) {
    Pack<T, kWidth> pack[kInFlight<T>];
#pragma unroll
    for (int j = 0; j < kInFlight<T>; ++j) {
      const int at = start + j * kRowThreads * kWidth;
      if (at < columns.whole) pack[j] = kOnce ? load_once<T, kWidth>(row + at) : load<T, kWidth>(row + at);
    }
#pragma unroll
    for (int j = 0; j < kInFlight<T>; ++j) {
      const int at = start + j * kRowThreads * kWidth;
      if (at >= columns.whole) continue;
      float x[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) x[k] = to_float(pack[j].value[k]);
      body(x, at);
    }
  }
  for (int i = columns.whole + thread; i < columns.count; i += kRowThreads) one(i);
}

template <int kRowThreads, typename T>
__device__ __forceinline__ void fill_row(T* to, int64_t classes, float value) {
  constexpr int kWidth = kWidest<T>;
  const int thread = threadIdx.x % kRowThreads;
  const Columns columns(to, to, classes);
  float values[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; ++k) values[k] = value;
  for (int i = thread; i < columns.head; i += kRowThreads) to[i] = from_float<T>(value);
  for (int i = columns.head + thread * kWidth; i < columns.whole; i += kRowThreads * kWidth) {
    store_floats<T>(to + i, values);
  }
  for (int i = columns.whole + thread; i < columns.count; i += kRowThreads) to[i] = from_float<T>(value);
}

struct RowSums {
  float maximum;   // 0 where all are -inf: subtracting -inf from -inf would make NaN of what is a sum of zeros
  float sum;       // of exponentials against the maximum
  float weighted;  // sum_c w_c (logits_c - maximum); only with label smoothing
};

template <int kRowThreads, typename T>
__device__ __forceinline__ RowSums reduce_row(const CrossEntropyRows& in, const T* row) {
  float maximum = -INFINITY, shift = 0.0f, sum = 0.0f;  // shift: the maximum, or 0 while that is -inf
  float weighted = 0.0f, weights = 0.0f;
  const bool smooth = in.label_smoothing != 0.0f;
  for_each<kRowThreads, false>(row, Columns(row, row, in.classes), [&](const auto& x, int column) {
    constexpr int kCount = sizeof(x) / sizeof(float);
    float next = maximum;  // without NaNs, which reach the result through the sum
#pragma unroll
    for (int k = 0; k < kCount; ++k) next = fmaxf(next, x[k]);
    if (next != maximum) {
      sum *= expf(maximum - next);
      weighted = fmaf(weights, shift - next, weighted);
      maximum = shift = next;
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum += expf(x[k] - shift);
    if (!smooth) return;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float weight = in.weight ? in.weight[column + k] : 1.0f;
      weighted = fmaf(x[k] - shift, weight, weighted);
      weights += weight;
    }
  });
  const float row_maximum = row_reduce<Max, kRowThreads>(maximum);
  const float row_shift = row_maximum == -INFINITY ? 0.0f : row_maximum;
  const float row_sum = row_reduce<Sum, kRowThreads>(sum * expf(maximum - row_shift));
  if (smooth) weighted = row_reduce<Sum, kRowThreads>(fmaf(weights, shift - row_shift, weighted));
  return {row_shift, row_sum, weighted};
}

// With l_c = maximum - logits_c + log(sum), e = label_smoothing, V = classes and t the row's target:
//   loss = (1 - e) w_t l_t + e / V sum_c w_c l_c.
struct RowTerms {
  float on_target;  // (1 - e) w_t
  float uniform;    // e / V
  float all;        // uniform sum_c w_c

  __device__ RowTerms(const CrossEntropyRows& in, int64_t target) {
    const float classes = static_cast<float>(in.classes);
    on_target = (1.0f - in.label_smoothing) * (in.weight ? in.weight[target] : 1.0f);
    uniform = in.label_smoothing / classes;
    all = uniform * (in.weight ? *in.weight_sum : classes);
  }
};

__device__ __forceinline__ float grad_of(const LossGradient& grad, int64_t row) {
  return (grad.loss ? grad.loss[grad.one ? 0 : row] : 1.0f) * (grad.scale ? *grad.scale : 1.0f);
}

template <int kRowThreads, typename T>
__device__ __forceinline__ void write_gradient(const CrossEntropyRows& in, const T* row, int target,
                                               const SoftmaxStatistics<float>& statistics, float grad, T* to) {
  const RowTerms terms(in, target);
  const float scale = (terms.on_target + terms.all) * statistics.inverse_sum;
  for_each<kRowThreads, true>(row, Columns(row, to, in.classes), [&](const auto& x, int column) {
    constexpr int kCount = sizeof(x) / sizeof(float);
    float dx[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      dx[k] = scale * expf(x[k] - statistics.maximum);
      if (terms.uniform != 0.0f) dx[k] -= in.weight ? terms.uniform * in.weight[column + k] : terms.uniform;
      if (column + k == target) dx[k] -= terms.on_target;
      dx[k] *= grad;
    }
    store_floats<T>(to + column, dx);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

// The row of this thread's warp or block, last first; negative where there is none.
template <int kRowThreads>
__device__ __forceinline__ int64_t own_row(int64_t rows) {
  constexpr int kRows = kThreads<kRowThreads> / kRowThreads;
  return rows - 1 - (static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kRowThreads);
}

template <typename T, int kRowThreads>
__global__ void __launch_bounds__(kThreads<kRowThreads>, kBlocksPerProcessor<kRowThreads>)
    forward_kernel(CrossEntropyForwardParams p) {
  const CrossEntropyRows& in = p.in;
  const int64_t row = own_row<kRowThreads>(in.rows);
  if (row < 0) return;
  const T* logits = static_cast<const T*>(in.logits) + row * in.row_stride;
  T* to = p.grad_logits ? static_cast<T*>(p.grad_logits) + row * in.row_stride : nullptr;
  const int64_t target = in.target[row];
  const bool first = threadIdx.x % kRowThreads == 0;
  const bool ignored = target == in.ignore_index;
  if (ignored || target < 0 || target >= in.classes) {
    const float value = ignored ? 0.0f : NAN;
    if (first) p.loss[row] = value;
    if (first && p.statistics) p.statistics[row] = {value, value};
    if (to) fill_row<kRowThreads>(to, in.classes, value);
    return;
  }
  const float on_target = to_float(logits[target]);  // before `to`, which may be the same memory, is written
  const RowSums sums = reduce_row<kRowThreads>(in, logits);
  const SoftmaxStatistics<float> statistics{sums.maximum, 1.0f / sums.sum};
  if (first) {
    const RowTerms terms(in, target);
    const float log_sum = logf(sums.sum);
    float loss = terms.on_target * ((sums.maximum - on_target) + log_sum);
    if (in.label_smoothing != 0.0f) loss += terms.all * log_sum - terms.uniform * sums.weighted;
    p.loss[row] = loss;
    if (p.statistics) p.statistics[row] = statistics;
  }
  if (!to) return;
  __syncwarp();  // a warp's row has no other barrier between its reading of logits[target] and its writing
  write_gradient<kRowThreads>(in, logits, static_cast<int>(target), statistics, grad_of(p.grad, row), to);
}

template <typename T, int kRowThreads>
__global__ void __launch_bounds__(kThreads<kRowThreads>, kBlocksPerProcessor<kRowThreads>)
    backward_kernel(CrossEntropyBackwardParams p) {
  const CrossEntropyRows& in = p.in;
  const int64_t row = own_row<kRowThreads>(in.rows);
  if (row < 0) return;
  const T* logits = static_cast<const T*>(in.logits) + row * in.row_stride;
  T* to = static_cast<T*>(p.grad_logits) + row * in.row_stride;
  const int64_t target = in.target[row];
  const bool ignored = target == in.ignore_index;
  if (ignored || target < 0 || target >= in.classes) {
    fill_row<kRowThreads>(to, in.classes, ignored ? 0.0f : NAN);
    return;
  }
  write_gradient<kRowThreads>(in, logits, static_cast<int>(target), p.statistics[row], grad_of(p.grad, row), to);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

template <int kRowThreads>
Launch one_row_each(int64_t rows) {
  constexpr int64_t kRows = kThreads<kRowThreads> / kRowThreads;
  return {static_cast<unsigned>((rows + kRows - 1) / kRows), kThreads<kRowThreads>,
          kRowThreads == kWarp ? 0 : sizeof(RowShared)};
}

}  // namespace

cudaError_t cross_entropy_forward(const CrossEntropyForwardParams& p, cudaStream_t stream) {
  if (p.in.rows == 0) return cudaSuccess;
  return dispatch(p.in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (p.in.classes <= kWarpClasses)
      return launch<forward_kernel<T, kWarp>>(one_row_each<kWarp>(p.in.rows), stream, p);
    return launch<forward_kernel<T, kBlockThreads>>(one_row_each<kBlockThreads>(p.in.rows), stream, p);
  });
}

cudaError_t cross_entropy_backward(const CrossEntropyBackwardParams& p, cudaStream_t stream) {
  if (p.in.rows == 0) return cudaSuccess;
  return dispatch(p.in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (p.in.classes <= kWarpClasses)
      return launch<backward_kernel<T, kWarp>>(one_row_each<kWarp>(p.in.rows), stream, p);
    return launch<backward_kernel<T, kBlockThreads>>(one_row_each<kBlockThreads>(p.in.rows), stream, p);
  });
}

}  // namespace fastllm::cuda
