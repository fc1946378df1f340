// Rows, each worked on by a group of neighbouring threads: part of a warp, a warp, or several warps of a block. How
// many threads is known at run time, so that one kernel serves rows of every length.
//
// A thread (a lane of its group) holds kVectors packs of its row in registers: vectors lane, lane + lanes, and so on,
// so that neighbouring lanes read neighbouring addresses. A row that is too long for that is gone through in chunks.
#pragma once

#include "cuda/reduce.h"

namespace fastllm::cuda {

// The part of a row that a group holds at once: vectors [first, first + count).
struct Chunk {
  int64_t first;
  int count;
};

struct RowGroup {
  int lanes;       // threads a row; a power of two that divides the block's threads
  int log2_lanes;  // for divisions
  int chunks;      // of a row

  // How rows of `vectors` are shared out: to as few lanes, `most` at most, as hold a row at `per_lane` vectors each and
  // read 64 bytes, two sectors, at once. More lanes would read whole lines of 128, but threads that hold little spend
  // their time on what each has to do once.
  static RowGroup of(int64_t vectors, int64_t vector_bytes, int64_t per_lane, int most) {
    RowGroup group{1, 0, 1};
    const auto too_few = [&](int lanes) {
      return lanes * per_lane < vectors || (lanes < kWarp && lanes * vector_bytes < 64 && lanes < vectors);
    };
    while (group.lanes < most && too_few(group.lanes)) group.lanes *= 2, ++group.log2_lanes;
    group.chunks = static_cast<int>((vectors + group.lanes * per_lane - 1) / (group.lanes * per_lane));
    return group;
  }

  // Threads of a block, 256 at least: short rows come several a block.
  int threads() const { return lanes < 256 ? 256 : lanes; }
  int rows_per_block() const { return threads() / lanes; }

  __device__ __forceinline__ int lane() const { return threadIdx.x & (lanes - 1); }
  __device__ __forceinline__ int index() const { return threadIdx.x >> log2_lanes; }  // among the block's groups
  __device__ __forceinline__ int count() const { return blockDim.x >> log2_lanes; }

  template <int kVectors>
  __device__ __forceinline__ Chunk chunk(int64_t vectors, int index) const {
    const int64_t first = static_cast<int64_t>(index) * (kVectors * lanes), left = vectors - first;
    return {first, static_cast<int>(left < kVectors * lanes ? left : kVectors * lanes)};
  }

  // body(i, vector) for each vector of this thread's in a chunk; i, known when compiled, is its place in registers.
  template <int kVectors, typename Body>
  __device__ __forceinline__ void for_each(const Chunk& chunk, Body&& body) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = lane() + i * lanes;
      if (vector < chunk.count) body(i, chunk.first + vector);
    }
  }

  // Each of the values over the group, in a fixed order; each thread of the group gets the results. All threads of the
  // block must call. partial: kCount times 32 floats of shared memory, others than at the call before, so that one
  // barrier is enough; a group within a warp needs none of either.
  template <typename Op, int kCount>
  __device__ __forceinline__ void reduce(float (&values)[kCount], float* partial) const {
    if (lanes < kWarp) return within_warp<Op>(values, lanes);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = warp_reduce<Op>(values[i]);
    if (lanes == kWarp) return;
    const int warp = threadIdx.x / kWarp, lane_of_warp = threadIdx.x % kWarp, warps = lanes / kWarp;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (lane_of_warp == 0) partial[i * kWarp + warp] = values[i];
    }
    __syncthreads();
    const int mine = (warp & ~(warps - 1)) + (lane_of_warp & (warps - 1));
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = partial[i * kWarp + mine];
    within_warp<Op>(values, warps);
  }

  template <typename Op>
  __device__ __forceinline__ float reduce(float value, float* partial) const {
    float values[1] = {value};
    reduce<Op>(values, partial);
    return values[0];
  }

 private:
  template <typename Op, int kCount>
  __device__ __forceinline__ static void within_warp(float (&values)[kCount], int width) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] = Op::of(values[i], __shfl_xor_sync(kAllLanes, values[i], distance));
      }
    }
  }
};

}  // namespace fastllm::cuda
