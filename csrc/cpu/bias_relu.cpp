#include "cpu/bias_relu.h"

#include <vector>

#include "cpu/dropout_mask.h"
#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {

template <typename T>
void bias_relu_forward(int64_t count, int64_t cols, const T* input, const T* bias, const DropoutParams* dropout,
                       T* output) {
  const RowBlocks blocks = RowBlocks::of_elements(ceil_div(count, cols), cols);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const int64_t at = row * cols, width = std::min(cols, count - at);
      const Compute<T>* keep =
          dropout ? dropout_multipliers(*dropout, at, width, scratch<Compute<T>>(width + kDropoutMargin)) : nullptr;
      for_each_vec<T>(width, [&](int64_t c, auto load, auto store) {
        Vec<T> x = load(input + at + c);
        if (bias) x = x + load(bias + c);
        x = at::vec::clamp_min(x, Vec<T>(0));  // which keeps a NaN
        store(output + at + c, keep ? x * load(keep + c) : x);
      });
    }
  });
}

template <typename T>
void bias_relu_backward(int64_t count, int64_t cols, const T* grad_output, const T* output, float scale, T* grad_input,
                        T* grad_bias) {
  using C = Compute<T>;
  const RowBlocks blocks = grad_bias ? RowBlocks::for_sums(ceil_div(count, cols), cols)
                                     : RowBlocks::of_elements(ceil_div(count, cols), cols);
  std::vector<C> partials(grad_bias ? blocks.count * cols : 0);
  parallel_for(blocks.count, [&](int64_t block) {
    C* sums = grad_bias ? partials.data() + block * cols : nullptr;
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const int64_t at = row * cols, width = std::min(cols, count - at);
      for_each_vec<T>(width, [&](int64_t c, auto load, auto store) {
        const Vec<T> passed = load(grad_output + at + c) * Vec<T>(scale), zero(0);
        const Vec<T> d = Vec<T>::blendv(passed, zero, load(output + at + c) <= zero);
        store(grad_input + at + c, d);
        if (sums) store(sums + c, load(sums + c) + d);
      });
    }
  });
  if (grad_bias) sum_partials<T>(partials.data(), blocks.count, cols, grad_bias);
}

#define INSTANTIATE(T)                                                                             \
  template void bias_relu_forward(int64_t, int64_t, const T*, const T*, const DropoutParams*, T*); \
  template void bias_relu_backward(int64_t, int64_t, const T*, const T*, float, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
