// The transpose of an n x n matrix, n a multiple of 32: by blocks of 32 x 8 threads that each turn a tile of 32 x 32.
#include "cuda/shared.h"
#include "emulator/sample.h"

namespace {

constexpr int kTile = 32, kRows = 8;

}  // namespace

// Stores go down a column: each lane of a warp touches a sector of its own.
__global__ void transpose_scattered(const float* from, float* to, int n) {
  const int x = blockIdx.x * kTile + threadIdx.x, y = blockIdx.y * kTile + threadIdx.y;
  for (int i = 0; i < kTile; i += kRows) to[x * n + y + i] = from[(y + i) * n + x];
}
SAMPLE(transpose_scattered);

// Through shared memory, whose rows of kPitch floats put a column in one bank (32) or in all (33).
template <int kPitch>
__global__ void transpose_tiled(const float* from, float* to, int n) {
  auto* tile = fastllm::cuda::shared_memory<float[kTile][kPitch]>();
  const int column = threadIdx.x, row = threadIdx.y;
  const int x = blockIdx.x * kTile, y = blockIdx.y * kTile;
  for (int i = 0; i < kTile; i += kRows) (*tile)[row + i][column] = from[(y + row + i) * n + x + column];
  __syncthreads();
  for (int i = 0; i < kTile; i += kRows) to[(x + row + i) * n + y + column] = (*tile)[column][row + i];
}
SAMPLE(transpose_tiled<32>);
SAMPLE(transpose_tiled<33>);
