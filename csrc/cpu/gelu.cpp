#include "cpu/gelu.h"

#include <vector>

#include "cpu/gelu_vec.h"
#include "cpu/row_blocks.h"

namespace fastllm {
namespace {

template <typename T, bool kTanh>
void forward(const GeluShape& shape, const T* input, const T* bias, T* output) {
  const RowBlocks blocks = RowBlocks::of_elements(shape.rows(), shape.cols);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* in = input + row * shape.cols;
      T* out = output + row * shape.cols;
      for_each_vec<T>(shape.width(row), [&](int64_t c, auto load, auto store) {
        const Vec<T> x = bias ? load(in + c) + load(bias + c) : load(in + c);
        store(out + c, gelu_and_slope<kTanh>(x).value);
      });
    }
  });
}

template <typename T, bool kTanh>
void backward(const GeluShape& shape, const T* grad_output, const T* input, const T* bias, T* grad_input,
              T* grad_bias) {
  using C = Compute<T>;
  const RowBlocks blocks =
      grad_bias ? RowBlocks::for_sums(shape.rows(), shape.cols) : RowBlocks::of_elements(shape.rows(), shape.cols);
  std::vector<C> partials(grad_bias ? blocks.count * shape.cols : 0);
  parallel_for(blocks.count, [&](int64_t block) {
    C* sums = grad_bias ? partials.data() + block * shape.cols : nullptr;
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* grad = grad_output + row * shape.cols;
      const T* in = input + row * shape.cols;
      T* out = grad_input + row * shape.cols;
      for_each_vec<T>(shape.width(row), [&](int64_t c, auto load, auto store) {
        const Vec<T> x = bias ? load(in + c) + load(bias + c) : load(in + c);
        const Vec<T> dx = load(grad + c) * gelu_and_slope<kTanh>(x).slope;
        store(out + c, dx);
        if (sums) store(sums + c, load(sums + c) + dx);
      });
    }
  });
  if (grad_bias) sum_partials<T>(partials.data(), blocks.count, shape.cols, grad_bias);
}

}  // namespace

template <typename T>
void gelu_forward(const GeluShape& shape, const T* input, const T* bias, T* output) {
  shape.tanh ? forward<T, true>(shape, input, bias, output) : forward<T, false>(shape, input, bias, output);
}

template <typename T>
void gelu_backward(const GeluShape& shape, const T* grad_output, const T* input, const T* bias, T* grad_input,
                   T* grad_bias) {
  shape.tanh ? backward<T, true>(shape, grad_output, input, bias, grad_input, grad_bias)
             : backward<T, false>(shape, grad_output, input, bias, grad_input, grad_bias);
}

#define INSTANTIATE(T)                                                     \
  template void gelu_forward<T>(const GeluShape&, const T*, const T*, T*); \
  template void gelu_backward<T>(const GeluShape&, const T*, const T*, const T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
