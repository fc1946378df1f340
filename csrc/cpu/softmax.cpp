#include "cpu/softmax.h"

#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {
namespace {

template <typename T>
void forward_row(int64_t size, const T* in, T* out) {
  using C = Compute<T>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  Vec<T> lanes(kLowest);
  for_each_vec<T>(size, [&](int64_t c, auto load, auto) { lanes = at::vec::maximum(lanes, load(in + c)); }, kLowest);
  const Vec<T> maximum(max_lanes(lanes));
  // The exponentials wait where they lose nothing: in `out`, or beside it if that is of a narrower dtype.
  C* exponentials;
  if constexpr (std::is_same_v<T, C>)
    exponentials = out;
  else
    exponentials = scratch<C>(size);
  const auto [total] = sum_row<T, 1>(
      size,
      [&](int64_t c, auto load, auto store, auto& sums) {
        const Vec<T> e = vexp_nonpositive(load(in + c) - maximum);
        store(exponentials + c, e);
        sums[0] = sums[0] + e;
      },
      kLowest);
  const Vec<T> scale(static_cast<C>(1.0 / total));
  for_each_vec<T>(size, [&](int64_t c, auto load, auto store) { store(out + c, load(exponentials + c) * scale); });
}

template <typename T>
void backward_row(int64_t size, const T* grad, const T* out, T* dx) {
  const auto [dot] = sum_row<T, 1>(size, [&](int64_t c, auto load, auto, auto& sums) {
    sums[0] = at::vec::fmadd(load(grad + c), load(out + c), sums[0]);
  });
  const Vec<T> mean(static_cast<Compute<T>>(dot));
  for_each_vec<T>(size,
                  [&](int64_t c, auto load, auto store) { store(dx + c, load(out + c) * (load(grad + c) - mean)); });
}

// Where the dimension is not the last, lanes are neighbours in memory and each has a softmax of its own.
// Here add(i, sum) returns `sum` with element i of the columns added. As in sum_row, blocks are summed by themselves.
template <typename T, typename Add>
Vec<T> sum_columns(int64_t size, Add&& add) {
  constexpr int64_t kBlock = 2048;
  Vec<T> total(Compute<T>(0));
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    Vec<T> sum(Compute<T>(0));
    for (int64_t i = begin; i < std::min(size, begin + kBlock); ++i) sum = add(i, sum);
    total = total + sum;
  }
  return total;
}

template <typename T, typename Load, typename Store>
void forward_column(int64_t size, int64_t inner, const T* in, T* out, Load load, Store store) {
  using C = Compute<T>;
  Vec<T> maximum(-std::numeric_limits<C>::infinity());
  for (int64_t i = 0; i < size; ++i) maximum = at::vec::maximum(maximum, load(in + i * inner));
  const Vec<T> total = sum_columns<T>(
      size, [&](int64_t i, const Vec<T>& sum) { return sum + vexp_nonpositive(load(in + i * inner) - maximum); });
  const Vec<T> scale = Vec<T>(C(1)) / total;
  for (int64_t i = 0; i < size; ++i) store(out + i * inner, vexp_nonpositive(load(in + i * inner) - maximum) * scale);
}

template <typename T, typename Load, typename Store>
void backward_column(int64_t size, int64_t inner, const T* grad, const T* out, T* dx, Load load, Store store) {
  const Vec<T> dot = sum_columns<T>(size, [&](int64_t i, const Vec<T>& sum) {
    return at::vec::fmadd(load(grad + i * inner), load(out + i * inner), sum);
  });
  for (int64_t i = 0; i < size; ++i) store(dx + i * inner, load(out + i * inner) * (load(grad + i * inner) - dot));
}

}  // namespace

template <typename T>
void softmax_forward(int64_t outer, int64_t size, int64_t inner, const T* input, T* output) {
  const RowBlocks blocks = RowBlocks::of_elements(outer, size * inner);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t o = blocks.begin(block); o < blocks.end(block); ++o) {
      const int64_t at = o * size * inner;
      if (inner == 1) {
        forward_row(size, input + at, output + at);
        continue;
      }
      for_each_vec<T>(inner, [&](int64_t c, auto load, auto store) {
        forward_column(size, inner, input + at + c, output + at + c, load, store);
      });
    }
  });
}

template <typename T>
void softmax_backward(int64_t outer, int64_t size, int64_t inner, const T* grad_output, const T* output,
                      T* grad_input) {
  const RowBlocks blocks = RowBlocks::of_elements(outer, size * inner);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t o = blocks.begin(block); o < blocks.end(block); ++o) {
      const int64_t at = o * size * inner;
      if (inner == 1) {
        backward_row(size, grad_output + at, output + at, grad_input + at);
        continue;
      }
      for_each_vec<T>(inner, [&](int64_t c, auto load, auto store) {
        backward_column(size, inner, grad_output + at + c, output + at + c, grad_input + at + c, load, store);
      });
    }
  });
}

#define INSTANTIATE(T)                                                    \
  template void softmax_forward(int64_t, int64_t, int64_t, const T*, T*); \
  template void softmax_backward(int64_t, int64_t, int64_t, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
