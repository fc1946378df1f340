// Elementwise work on a matrix whose columns have something of their own: a bias, or a sum over the rows.
//
// A block takes a strip of columns and a group of rows. A thread keeps to kWidth columns, one access wide, and walks
// down its group's rows: what belongs to its columns stays in registers, so a bias is read once a group and a sum is
// added up without a word to other threads. An array without columns is a matrix too: Strips::flat.
//
// The cut depends on the shape and the width of accesses alone, so sums are the same on every GPU.
#pragma once

#include <algorithm>

#include "cuda/dtype.h"
#include "cuda/launch.h"
#include "cuda/packed.h"
#include "cuda/shared.h"

namespace fastllm::cuda {

constexpr int kStripThreads = 256;
// Rows whose loads a thread has in flight at once. Of one array that is 2 x 16 bytes a thread, 32 KiB in each
// multiprocessor that runs 4 such blocks; an H100 needs 3.35 TB/s x 700 ns / 132 = 18 KiB under way in each. Of single
// 16-bit elements it is 4 x 2 bytes and 12 KiB, which with more rows would take more registers than it gains.
constexpr int strip_rows(int width) {
  return width == 1 ? 4 : 2;
}

struct Strips {
  int64_t count;  // elements; the last row may be cut short, but not inside an access
  int64_t rows, cols;
  int width;  // columns of a thread
  int lanes;  // threads side by side in a row, a power of two
  int64_t rows_per_group;
  unsigned strips, groups;
  int64_t origin;  // the element that all this starts at

  // With sums, half of the threads at a time hand theirs to the other half through shared memory.
  Launch launch(bool with_sums = false) const {
    const size_t shared_bytes = with_sums ? kStripThreads / 2 * width * sizeof(float) : 0;
    return {dim3(strips * groups), dim3(lanes, kStripThreads / lanes), shared_bytes};
  }

  // Without sums a group is what a block's threads have in flight at once: 16 rows or more. With
  // sums the same, or longer where that would make more groups than keep a GPU busy: their sums must be added up. But a
  // thread sums 256 rows at most: of many more, the sum would be off, as what is added is small beside it.
  static Strips matrix(int64_t rows, int64_t cols, int width, bool with_sums) {
    constexpr int64_t kBlocks = 1024, kSumRows = 256;
    int lanes = 1;
    while (lanes < 32 && lanes * width < cols) lanes *= 2;
    const int64_t strips = divide_up(cols, static_cast<int64_t>(lanes) * width);
    const int64_t side_by_side = kStripThreads / lanes, step = side_by_side * strip_rows(width);
    const int64_t most = with_sums ? std::max<int64_t>(1, kBlocks / strips) : rows;
    const int64_t group = divide_up(std::min(divide_up(rows, most), side_by_side * kSumRows), step) * step;
    return {rows * cols,
            rows,
            cols,
            width,
            lanes,
            group,
            static_cast<unsigned>(strips),
            divide_up_unsigned(rows, group),
            0};
  }

  // An array of `count` elements, as a row of rows as long as a block is wide. What does not fill an access at its end
  // is left to the strips of `tail`.
  static Strips flat(int64_t count, int width) {
    const int64_t cols = static_cast<int64_t>(kStripThreads) * width, rows = divide_up(count, cols);
    const int group = strip_rows(width);
    return {count / width * width, rows, cols, width, kStripThreads, group, 1, divide_up_unsigned(rows, group), 0};
  }
  static Strips tail(int64_t begin, int64_t count) {
    Strips strips = flat(count - begin, 1);
    strips.origin = begin;
    return strips;
  }

  static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static unsigned divide_up_unsigned(int64_t a, int64_t b) { return static_cast<unsigned>(divide_up(a, b)); }
};

// The widest access to rows of `cols` elements (0: to an array), all of whose pointers are given; null may.
template <typename... Pointers>
int widest_access(DType dtype, int64_t cols, Pointers... pointers) {
  const int widest = dtype == DType::kFloat32 ? kWidest<float> : kWidest<__half>;
  return cols % widest == 0 && (is_aligned(pointers) && ...) ? widest : 1;
}

// Calls wide(strips) or narrow(strips), which launch a kernel of that width, and narrow(tail) for what that leaves.
template <typename Wide, typename Narrow>
cudaError_t in_strips(int64_t count, const Strips& strips, Wide&& wide, Narrow&& narrow) {
  if (strips.width == 1) return narrow(strips);
  const cudaError_t error = strips.count > 0 ? wide(strips) : cudaSuccess;
  return error != cudaSuccess || strips.count == count ? error : narrow(Strips::tail(strips.count, count));
}

// A thread's part of a contiguous array: from element `begin`, every `stride`, below `end`; kWidth elements at each, in
// columns `column` and on of rows `row`, `row` + blockDim.y, .. It takes kRows of these a step.
template <typename T, int kWidth>
class Strip {
 public:
  using Values = Packed<T, kWidth>;
  static constexpr int kRows = strip_rows(kWidth);
  int64_t column, row, begin, end, stride;

  __device__ __forceinline__ explicit Strip(const Strips& s)
      : column((static_cast<int64_t>(blockIdx.x % s.strips) * blockDim.x + threadIdx.x) * kWidth),
        row(blockIdx.x / s.strips * s.rows_per_group + threadIdx.y),
        begin(s.origin + row * s.cols + column),
        end((blockIdx.x / s.strips + 1) * s.rows_per_group * s.cols),
        stride(blockDim.y * s.cols) {
    end = s.origin + (end < s.count ? end : s.count);
    if (column >= s.cols) end = begin;
  }

  // The values at element `at`; past the end nothing is read, and they are 0.
  __device__ __forceinline__ Values load(const T* from, int64_t at) const { return load_if(at < end, from + at); }
  __device__ __forceinline__ static Values load_if(bool there, const T* from) {
    return there ? Values::load(from) : Values{};
  }

  // What belongs to the thread's columns, as a bias does; 0 of a null pointer.
  __device__ __forceinline__ Values load_columns(const T* from) const {
    return load_if(from && begin < end, from + column);
  }

  // Adds up what the block's threads have of their columns and writes it as the group's row of partial sums, (groups,
  // cols) for column_sums.h. All threads of the block must call.
  __device__ __forceinline__ void write_sums(const Strips& s, float (&sums)[kWidth], float* partials) const {
    float* shared = shared_memory<float>();
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      // One column of all threads after the other: neighbours write to neighbouring banks.
      float* mine = shared + threadIdx.y % half * blockDim.x + threadIdx.x;
      const unsigned apart = half * blockDim.x;
      if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) mine[i * apart] = sums[i];
      }
      __syncthreads();
      if (threadIdx.y < half) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[i] += mine[i * apart];
      }
      __syncthreads();
    }
    if (threadIdx.y > 0 || column >= s.cols) return;
    store_floats(partials + blockIdx.x / s.strips * s.cols + column, sums);
  }
};

}  // namespace fastllm::cuda
