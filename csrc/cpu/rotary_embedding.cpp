#include "cpu/rotary_embedding.h"

#include <algorithm>

#include "cpu/row_blocks.h"

namespace fastllm {
namespace {

using at::vec::deinterleave2;
using at::vec::interleave2;

template <typename V>
struct Pair {
  V x, y;
};

template <typename V>
C10_ALWAYS_INLINE Pair<V> turn(const Pair<V>& p, const V& cos, const V& sin) {
  return {p.x * cos - p.y * sin, p.y * cos + p.x * sin};
}

// One head of one token. sign is 1, or -1 to turn back.
template <typename T>
void turn_halves(int64_t pairs, const T* in, const Compute<T>* cos, const Compute<T>* sin, Compute<T> sign, T* out) {
  for_each_vec<T>(pairs, [&](int64_t i, auto load, auto store) {
    const auto [x, y] = turn<Vec<T>>({load(in + i), load(in + pairs + i)}, load(cos + i), load(sin + i) * Vec<T>(sign));
    store(out + i, x);
    store(out + pairs + i, y);
  });
}

template <typename T>
void turn_neighbours(int64_t pairs, const T* in, const Compute<T>* cos, const Compute<T>* sin, Compute<T> sign,
                     T* out) {
  constexpr int64_t n = kLanes<T>;
  int64_t i = 0;
  for (; i + n <= pairs; i += n) {
    const auto [x, y] = deinterleave2(vload(in + 2 * i), vload(in + 2 * i + n));
    const auto turned = turn<Vec<T>>({x, y}, vload(cos + i), vload(sin + i) * Vec<T>(sign));
    const auto [first, second] = interleave2(turned.x, turned.y);
    vstore(out + 2 * i, first);
    vstore(out + 2 * i + n, second);
  }
  for (; i < pairs; ++i) {
    const Pair<Compute<T>> p{static_cast<Compute<T>>(in[2 * i]), static_cast<Compute<T>>(in[2 * i + 1])};
    const auto [x, y] = turn(p, cos[i], sin[i] * sign);
    out[2 * i] = static_cast<T>(x);
    out[2 * i + 1] = static_cast<T>(y);
  }
}

}  // namespace

template <typename T>
void rotary_embedding(const Rotary& r, const T* input, const Compute<T>* cos, const Compute<T>* sin, T* output) {
  const auto turn_head = r.interleaved ? turn_neighbours<T> : turn_halves<T>;
  const Compute<T> sign(r.inverse ? -1 : 1);
  const RowBlocks blocks = RowBlocks::of_elements(r.batch * r.outer * r.inner, r.head_dim);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const int64_t inner = row % r.inner, outer = row / r.inner % r.outer, batch = row / (r.inner * r.outer);
      const T* in = input + batch * r.strides[0] + outer * r.strides[1] + inner * r.strides[2];
      T* out = output + row * r.head_dim;
      const int64_t pairs = (r.tokens_outer ? inner : outer) < r.turning_heads ? r.pairs : 0;
      const int64_t angles = r.position(batch, r.tokens_outer ? outer : inner) * r.pairs;
      turn_head(pairs, in, cos + angles, sin + angles, sign, out);
      std::copy(in + 2 * pairs, in + r.head_dim, out + 2 * pairs);
    }
  });
}

#define INSTANTIATE(T) \
  template void rotary_embedding<T>(const Rotary&, const T*, const Compute<T>*, const Compute<T>*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
