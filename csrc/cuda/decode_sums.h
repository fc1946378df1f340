// What the lanes of a warp hold of rows and of sums in decode_attention.
#pragma once

#include <cmath>

#include "cuda/decode_attention.h"
#include "cuda/packed.h"
#include "cuda/reduce.h"

namespace fastllm::cuda {

constexpr int kValues = 8;  // of a row, that a lane holds
static_assert(kDecodeMostColumns == kValues * kWarp, "a warp holds a row");

// What a lane holds of a row: a pack of 16 bytes, or two in float32, the second one behind all lanes' first.
template <typename T>
struct Columns {
  static constexpr int kWidth = kWidest<T>, kPacks = kValues / kWidth;
  int lanes, lane, count;

  // body(first column, first of the lane's values) for each pack that begins before the row's end.
  template <typename Body>
  __device__ __forceinline__ void for_each_pack(Body&& body) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int column = (i * lanes + lane) * kWidth;
      if (column < count) body(column, i * kWidth);
    }
  }
};

// Values [first, first + kWidth) of a lane's.
template <int kWidth>
__device__ __forceinline__ void copy_in(float (&value)[kValues], int first, const float (&from)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) value[first + i] = from[i];
}
template <int kWidth>
__device__ __forceinline__ void copy_out(float (&to)[kWidth], const float (&value)[kValues], int first) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = value[first + i];
}

// A lane's part of a row as it waits in registers; zeros past the row's end.
template <typename T, bool kWide>
struct Part {
  static constexpr int kWidth = Columns<T>::kWidth;
  Packed<T, kWidth> packs[Columns<T>::kPacks] = {};

  __device__ __forceinline__ static Part load(const T* row, const Columns<T>& columns) {
    Part part;
    columns.for_each_pack([&](int column, int first) {
      if constexpr (kWide) {
        part.packs[first / kWidth] = Packed<T, kWidth>::load(row + column);
      } else {
        Pack<T, kWidth> values;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) values.value[i] = column + i < columns.count ? row[column + i] : T(0.0f);
        part.packs[first / kWidth] = reinterpret_cast<const Packed<T, kWidth>&>(values);
      }
    });
    return part;
  }

  __device__ __forceinline__ void unpack(float (&value)[kValues]) const {
#pragma unroll
    for (int i = 0; i < Columns<T>::kPacks; ++i) {
      float some[kWidth];
      packs[i].unpack(some);
      copy_in(value, i * kWidth, some);
    }
  }

  // With the same columns of a query: a lane's share of the product.
  __device__ __forceinline__ float dot(const float (&query)[kValues]) const {
    float value[kValues], sum = 0.0f;
    unpack(value);
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum = fmaf(value[i], query[i], sum);
    return sum;
  }
};

// A lane's columns of a row of floats in shared memory or in global; 0 past the row's end.
template <typename T>
__device__ __forceinline__ void load_columns(const float* row, const Columns<T>& columns, float (&value)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) value[i] = 0.0f;
  columns.for_each_pack([&](int column, int first) {
    float some[Columns<T>::kWidth];
    load_floats(row + column, some);
    copy_in(value, first, some);
  });
}

// To global memory, or to shared.
template <bool kGlobal, typename T>
__device__ __forceinline__ void store_columns(float* row, const Columns<T>& columns, const float (&value)[kValues]) {
  columns.for_each_pack([&](int column, int first) {
    float some[Columns<T>::kWidth];
    copy_out(some, value, first);
    store_floats<kGlobal>(row + column, some);
  });
}

// A lane's part of what some keys give to a query. Products and sums are fused by name, so that every kernel rounds
// alike.
struct Sums {
  float maximum = -INFINITY, sum = 0.0f, value[kValues] = {};

  // While no score is over -inf there is nothing to scale, and -inf - -inf would be NaN.
  __device__ __forceinline__ static float factor(float maximum, float raised) {
    return maximum == raised ? 1.0f : expf(maximum - raised);
  }

  // Gets ready for scores of which `upper` is the largest.
  __device__ __forceinline__ void raise(float upper) {
    const float raised = Max::of(maximum, upper);
    if (raised == maximum) return;
    const float scale = expf(maximum - raised);
    maximum = raised;
    sum *= scale;
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[i] *= scale;
  }

  __device__ __forceinline__ void add(const Sums& other) {
    const float raised = Max::of(maximum, other.maximum);
    const float scale = factor(maximum, raised), others = factor(other.maximum, raised);
    maximum = raised;
    sum = fmaf(sum, scale, other.sum * others);
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[i] = fmaf(value[i], scale, other.value[i] * others);
  }

  // Those of the warp's other groups; the first group's lanes have the result. All lanes must call.
  __device__ __forceinline__ void add_groups_of_warp(int lanes) {
    for (int distance = lanes; distance < kWarp; distance *= 2) {
      Sums other;
      other.maximum = __shfl_xor_sync(kAllLanes, maximum, distance);
      other.sum = __shfl_xor_sync(kAllLanes, sum, distance);
#pragma unroll
      for (int i = 0; i < kValues; ++i) other.value[i] = __shfl_xor_sync(kAllLanes, value[i], distance);
      add(other);
    }
  }

  // In memory: two statistics, and the values by their columns.
  template <typename T, bool kGlobal>
  __device__ __forceinline__ void store(float* statistics, float* values, const Columns<T>& columns) const {
    if (columns.lane == 0) statistics[0] = maximum, statistics[1] = sum;
    store_columns<kGlobal>(values, columns, value);
  }
  template <typename T>
  __device__ __forceinline__ static Sums load(const float* statistics, const float* values, const Columns<T>& columns) {
    Sums sums;
    sums.maximum = statistics[0], sums.sum = statistics[1];
    load_columns(values, columns, sums.value);
    return sums;
  }
};

// Where the warps of a block leave their sums for one that adds them up, in order.
template <int kCount>
struct WarpSums {
  float statistics[kCount][2];
  alignas(16) float values[kCount][kDecodeMostColumns];

  template <typename T>
  __device__ __forceinline__ void put(const Sums& sums, const Columns<T>& columns) {
    const int warp = threadIdx.x / kWarp;
    if (static_cast<int>(threadIdx.x % kWarp) < columns.lanes)
      sums.store<T, false>(statistics[warp], values[warp], columns);
  }
  template <typename T>
  __device__ __forceinline__ Sums total(const Columns<T>& columns) const {
    Sums all = Sums::load(statistics[0], values[0], columns);
    for (int warp = 1; warp < kCount; ++warp) all.add(Sums::load(statistics[warp], values[warp], columns));
    return all;
  }
};

}  // namespace fastllm::cuda
