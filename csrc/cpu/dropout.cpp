#include "cpu/dropout.h"

#include <vector>

#include "cpu/dropout_mask.h"
#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {
namespace {

template <typename T>
const Compute<T>* row_multipliers(const DropoutParams* dropout, int64_t first, int64_t count) {
  if (dropout == nullptr) return nullptr;
  return dropout_multipliers(*dropout, first, count, scratch<Compute<T>>(count + kDropoutMargin));
}

}  // namespace

template <typename T>
void dropout_add_forward(int64_t count, int64_t cols, const T* input, const T* residual, const T* bias,
                         const DropoutParams* dropout, T* output) {
  const RowBlocks blocks = RowBlocks::of_elements(ceil_div(count, cols), cols);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const int64_t at = row * cols, width = std::min(cols, count - at);
      const Compute<T>* keep = row_multipliers<T>(dropout, at, width);
      for_each_vec<T>(width, [&](int64_t c, auto load, auto store) {
        Vec<T> x = load(input + at + c);
        if (bias) x = x + load(bias + c);
        if (keep) x = x * load(keep + c);
        store(output + at + c, residual ? x + load(residual + at + c) : x);
      });
    }
  });
}

template <typename T>
void dropout_add_backward(int64_t count, int64_t cols, const T* grad_output, const DropoutParams* dropout,
                          T* grad_input, T* grad_bias) {
  using C = Compute<T>;
  const RowBlocks blocks = grad_bias ? RowBlocks::for_sums(ceil_div(count, cols), cols)
                                     : RowBlocks::of_elements(ceil_div(count, cols), cols);
  std::vector<C> partials(grad_bias ? blocks.count * cols : 0);
  parallel_for(blocks.count, [&](int64_t block) {
    C* sums = grad_bias ? partials.data() + block * cols : nullptr;
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const int64_t at = row * cols, width = std::min(cols, count - at);
      const C* keep = row_multipliers<T>(dropout, at, width);
      for_each_vec<T>(width, [&](int64_t c, auto load, auto store) {
        Vec<T> d = load(grad_output + at + c);
        if (keep) d = d * load(keep + c);
        store(grad_input + at + c, d);
        if (sums) store(sums + c, load(sums + c) + d);
      });
    }
  });
  if (grad_bias) sum_partials<T>(partials.data(), blocks.count, cols, grad_bias);
}

#define INSTANTIATE(T)                                                                                         \
  template void dropout_add_forward(int64_t, int64_t, const T*, const T*, const T*, const DropoutParams*, T*); \
  template void dropout_add_backward(int64_t, int64_t, const T*, const DropoutParams*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
