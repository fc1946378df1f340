// ldmatrix and mma with the fragment layouts of the PTX ISA manual, sections "ldmatrix" and "mma.m16n8k16".
#include <cstring>

#include "block.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "fault.h"
#include "memory.h"

namespace emulator {

namespace {

struct LoadOperand {
  uint32_t* fragments;
  const void* row;
  bool transposed;
  uintptr_t site;
};

// Lane 8 i + j brings row j of matrix i. Lane l gets of each 8 x 8 matrix the elements (l / 4, 2 (l % 4)) and the one
// right of it; transposed, (2 (l % 4), l / 4) and the one below.
void combine_load(Warp& warp, const Meeting& meeting) {
  uint16_t matrix[4][8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& operand = meeting.of<LoadOperand>(lane);
    const auto row = reinterpret_cast<uintptr_t>(operand.row);
    block.set_subject(warp.thread(lane));
    if (!memory.is_shared(row))
      fault("ldmatrix of " + text(meeting.place) + ": lane " + std::to_string(lane) + "'s row is not in shared memory");
    memory.touch_shared(warp.thread(lane), row, 16, Use::kRead, operand.site);
    std::memcpy(matrix[lane / 8][lane % 8], operand.row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& operand = meeting.of<LoadOperand>(lane);
    const int major = lane / 4, minor = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = operand.transposed ? matrix[i][minor][major] : matrix[i][major][minor];
      const uint32_t high = operand.transposed ? matrix[i][minor + 1][major] : matrix[i][major][minor + 1];
      operand.fragments[i] = low | high << 16;
    }
  }
}

struct MmaOperand {
  Narrow type;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <typename T>
void unpack(uint32_t pair, float& low, float& high) {
  T values[2];
  std::memcpy(values, &pair, sizeof pair);
  low = static_cast<float>(values[0]);
  high = static_cast<float>(values[1]);
}

// d += a b with a 16 x 16, b 16 x 8, d 16 x 8. With group = lane / 4 and column = 2 (lane % 4), a lane holds of
//   a: rows group and group + 8 at columns column, column + 1 (registers 0 and 1) and 8 further right (2 and 3),
//   b: rows column, column + 1 (register 0) and 8 further down (1) of column group,
//   d: row group (0 and 1) and group + 8 (2 and 3) at columns column, column + 1.
template <typename T>
void multiply(const Meeting& meeting) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& operand = meeting.of<MmaOperand>(lane);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, at = column + i / 2 * 8;
      unpack<T>(operand.a[i], a[row][at], a[row][at + 1]);
      d[group + i / 2 * 8][column + i % 2] = operand.d[i];
    }
    for (int i = 0; i < 2; ++i) unpack<T>(operand.b[i], b[column + i * 8][group], b[column + i * 8 + 1][group]);
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& operand = meeting.of<MmaOperand>(lane);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) operand.d[i] = d[group + i / 2 * 8][column + i % 2];
  }
}

void combine_mma(Warp&, const Meeting& meeting) {
  const Narrow type = meeting.of<MmaOperand>(0).type;
  if (type == Narrow::kBFloat16) {
    multiply<__nv_bfloat16>(meeting);
  } else {
    multiply<__half>(meeting);
  }
}

}  // namespace

void load_matrices(uint32_t* fragments, const void* row, bool transposed, Place place) {
  LoadOperand operand{fragments, row, transposed, reinterpret_cast<uintptr_t>(__builtin_return_address(0))};
  const char* name = transposed ? "ldmatrix.trans" : "ldmatrix";
  block.warp(block.current().warp()).meet(name, kAllLanes, &operand, combine_load, place);
}

void multiply_accumulate(Narrow type, float* d, const uint32_t* a, const uint32_t* b, Place place) {
  MmaOperand operand{type, d, a, b};
  const char* name = type == Narrow::kBFloat16 ? "mma.m16n8k16 (bf16)" : "mma.m16n8k16 (f16)";
  block.warp(block.current().warp()).meet(name, kAllLanes, &operand, combine_mma, place);
}

}  // namespace emulator
