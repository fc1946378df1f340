// rotary_embedding; backward is the same kernel, turning back.
//
// It moves 2 elements of memory an element. All heads of a token turn by the same angles, so a thread takes the same
// pairs of 4 heads, one after the other, and reads cosines and sines, 8 bytes a pair, once for them, mostly from L2, as
// every sequence has the same. Of arithmetic there are 3 instructions an element: memory bounds it, 1.25 us per million
// elements in bf16. A block is 256 threads, as many tokens as their pairs leave room for; a thread has 2 loads in
// flight, 32 KiB in a multiprocessor that runs 4 blocks, of the 18 that an H100 needs. The threads of a token read and
// write side by side, whole sectors, whether a pair's elements lie half a head apart or are neighbours.
#include "cuda/rotary_embedding.h"

#include <cmath>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/packed.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 4;

// ---------------------------------------------------------------------------------------------------------------------
// Kernel
// ---------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void turn(float& x, float& y, float cos, float sin) {
  const float turned = x * cos - y * sin;
  y = y * cos + x * sin;
  x = turned;
}

// Turns pairs of which one element each is in one pack and in the other.
template <typename T, int kWidth>
__device__ __forceinline__ void turn_apart(Packed<T, kWidth>& first, Packed<T, kWidth>& second,
                                           const float (&cos)[kWidth], const float (&sin)[kWidth]) {
  float x[kWidth], y[kWidth];
  first.unpack(x);
  second.unpack(y);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) turn(x[i], y[i], cos[i], sin[i]);
  first = Packed<T, kWidth>::pack(x);
  second = Packed<T, kWidth>::pack(y);
}

// Turns the pairs of neighbours in a pack, by half of the angles.
template <int kHalf, typename T, int kWidth>
__device__ __forceinline__ void turn_neighbours(Packed<T, kWidth>& pack, const float (&cos)[kWidth],
                                                const float (&sin)[kWidth]) {
  float x[kWidth];
  pack.unpack(x);
#pragma unroll
  for (int i = 0; i < kWidth / 2; ++i) {
    turn(x[2 * i], x[2 * i + 1], cos[kHalf * kWidth / 2 + i], sin[kHalf * kWidth / 2 + i]);
  }
  pack = Packed<T, kWidth>::pack(x);
}

// Half of the angles from what the tables have at `offset`.
template <int kHalf, int kWidth>
__device__ __forceinline__ void load_half(const float* table, int64_t offset, float (&angles)[kWidth]) {
  constexpr int kCount = kWidth > 1 ? kWidth / 2 : 1;
  float half[kCount];
  load_floats(table + offset, half);
#pragma unroll
  for (int i = 0; i < kWidth / 2; ++i) angles[kHalf * kCount + i] = half[i];
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    rotary_kernel(Rotary r, unsigned head_groups, const T* input, const float* cos_table, const float* sin_table,
                  T* output) {
  const int64_t tokens = r.tokens_outer ? r.outer : r.inner, heads = r.tokens_outer ? r.inner : r.outer;
  const int64_t index = static_cast<int64_t>(blockIdx.x / head_groups) * blockDim.y + threadIdx.y;
  if (index >= r.batch * tokens) return;
  const int64_t b = index / tokens, t = index % tokens, position = r.position(b, t);
  const bool known = position >= 0 && position < r.table_rows;
  const int64_t head = static_cast<int64_t>(blockIdx.x % head_groups) * kHeads;
  const int count = heads - head < kHeads ? static_cast<int>(heads - head) : kHeads;
  const int turning = static_cast<int>(r.turning_heads - head);  // the first so many of them
  const int64_t next_input = r.tokens_outer ? r.strides[2] : r.strides[1];
  const int64_t next_output = r.tokens_outer ? r.head_dim : tokens * r.head_dim;
  input += b * r.strides[0] + t * (r.tokens_outer ? r.strides[1] : r.strides[2]) + head * next_input;
  output += b * tokens * heads * r.head_dim + t * (r.tokens_outer ? heads : 1) * r.head_dim + head * next_output;

  const int head_dim = static_cast<int>(r.head_dim), pairs = static_cast<int>(r.pairs);
  const int lane = threadIdx.x * kWidth, tile = blockDim.x * kWidth;
  for (int pair = lane;; pair += tile) {
    // Two packs: halves of kWidth pairs, that lie apart; or of pairs that are neighbours, a tile of threads apart; or,
    // of what is copied and of single elements, one after the other.
    const bool apart = !r.interleaved && pair < pairs, tiled = r.interleaved && kWidth > 1;
    const int first = apart ? pair : tiled ? 2 * pair - lane : 2 * pair;
    const int second = apart ? pairs + pair : first + (tiled ? tile : kWidth);
    if (first >= head_dim) break;
    const bool first_turns = apart || (r.interleaved && first < 2 * pairs);
    const bool second_turns = apart || (r.interleaved && second < 2 * pairs);
    float cos[kWidth], sin[kWidth];
    if (known && tiled) {
      const int64_t row = position * pairs;
      if (first_turns) load_half<0>(cos_table, row + first / 2, cos), load_half<0>(sin_table, row + first / 2, sin);
      if (second_turns) load_half<1>(cos_table, row + second / 2, cos), load_half<1>(sin_table, row + second / 2, sin);
    } else if (known && first_turns) {
      load_floats(cos_table + position * pairs + pair, cos);
      load_floats(sin_table + position * pairs + pair, sin);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (!known) cos[i] = sin[i] = NAN;
      if (r.inverse) sin[i] = -sin[i];
    }
    const T* from = input;
    T* to = output;
#pragma unroll 1
    for (int i = 0; i < count; ++i, from += next_input, to += next_output) {
      Packed<T, kWidth> x = Packed<T, kWidth>::load(from + first), y{};
      if (second < head_dim) y = Packed<T, kWidth>::load(from + second);
      if (i < turning) {
        if (tiled) {
          if (first_turns) turn_neighbours<0>(x, cos, sin);
          if (second_turns) turn_neighbours<1>(y, cos, sin);
        } else if (first_turns) {
          turn_apart(x, y, cos, sin);
        }
      }
      x.store(to + first);
      if (second < head_dim) y.store(to + second);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launcher
// ---------------------------------------------------------------------------------------------------------------------

// Whether every row that is read or written begins at a multiple of `width` elements.
bool rows_are_multiples(const Rotary& r, int64_t width) {
  const int64_t sizes[] = {r.batch, r.outer, r.inner};
  for (int i = 0; i < 3; ++i) {
    if (sizes[i] > 1 && r.strides[i] % width != 0) return false;
  }
  return r.head_dim % width == 0 && r.pairs % width == 0;
}

template <typename T, int kWidth>
cudaError_t launch_width(const RotaryParams& p, cudaStream_t stream) {
  const Rotary& r = p.rotary;
  const int64_t tokens = r.batch * (r.tokens_outer ? r.outer : r.inner), heads = r.tokens_outer ? r.inner : r.outer;
  int lanes = 1;
  while (lanes < kThreads && 2 * lanes * kWidth < r.head_dim) lanes *= 2;
  const int rows = kThreads / lanes;
  const auto head_groups = static_cast<unsigned>((heads + kHeads - 1) / kHeads);
  const dim3 grid(static_cast<unsigned>((tokens + rows - 1) / rows) * head_groups);
  return launch<rotary_kernel<T, kWidth>>({grid, dim3(lanes, rows)}, stream, r, head_groups,
                                          static_cast<const T*>(p.input), p.cos, p.sin, static_cast<T*>(p.output));
}

}  // namespace

cudaError_t rotary_embedding(const RotaryParams& params, cudaStream_t stream) {
  const Rotary& r = params.rotary;
  if (r.batch * r.outer * r.inner * r.head_dim == 0) return cudaSuccess;
  const bool aligned =
      is_aligned(params.input) && is_aligned(params.output) && is_aligned(params.cos) && is_aligned(params.sin);
  return dispatch(params.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return aligned && rows_are_multiples(r, kWidest<T>) ? launch_width<T, kWidest<T>>(params, stream)
                                                        : launch_width<T, 1>(params, stream);
  });
}

}  // namespace fastllm::cuda
