// One warp: what ldmatrix and mma put where.
#include "cuda/ptx.h"
#include "cuda/shared.h"
#include "emulator/sample.h"

namespace {

using namespace fastllm::cuda;

}  // namespace

// rows: 32 rows of 8 values, four 8 x 8 matrices one below the other. fragments: (32 lanes, 4 registers).
template <bool kTransposed>
__global__ void load_fragments(const uint4* rows, uint4* fragments) {
  auto* shared = shared_memory<uint4[32]>();
  (*shared)[threadIdx.x] = rows[threadIdx.x];
  __syncwarp();
  uint32_t r[4];
  if constexpr (kTransposed) {
    ldmatrix_x4_trans(r, &(*shared)[threadIdx.x]);
  } else {
    ldmatrix_x4(r, &(*shared)[threadIdx.x]);
  }
  fragments[threadIdx.x] = make_uint4(r[0], r[1], r[2], r[3]);
}
SAMPLE(load_fragments<false>);
SAMPLE(load_fragments<true>);

// d += a b by fragments as they are: a (32, 4) and b (32, 2) registers, d (32, 4) floats; `times` times.
template <typename T>
__global__ void multiply_fragments(const uint4* a, const uint2* b, float4* d, int times) {
  const uint4 a4 = a[threadIdx.x % 32];
  const uint2 b2 = b[threadIdx.x % 32];
  const float4 d4 = d[threadIdx.x];
  const uint32_t ra[4] = {a4.x, a4.y, a4.z, a4.w}, rb[2] = {b2.x, b2.y};
  float rd[4] = {d4.x, d4.y, d4.z, d4.w};
  for (int i = 0; i < times; ++i) mma_m16n8k16<T>(rd, ra, rb);
  d[threadIdx.x] = make_float4(rd[0], rd[1], rd[2], rd[3]);
}
SAMPLE(multiply_fragments<__nv_bfloat16>);
SAMPLE(multiply_fragments<__half>);
