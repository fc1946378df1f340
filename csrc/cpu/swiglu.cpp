#include "cpu/swiglu.h"

#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {
namespace {

// From e^-|x|, which takes half of what e^-x does: 1 / (1 + e), or e / (1 + e) below 0.
template <typename V>
inline V sigmoid(const V& x) {
  const V e = vexp_nonpositive(x.abs().neg()), s = V(1) / (V(1) + e);
  return V::blendv(s, s * e, x < V(0));
}

// Calls body(row) for every row.
template <typename Body>
void for_each_row(int64_t rows, int64_t cols, const Body& body) {
  const RowBlocks blocks = RowBlocks::of_elements(rows, cols);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) body(row);
  });
}

}  // namespace

template <typename T>
void swiglu_forward(const Swiglu<T>& in, T* output) {
  for_each_row(in.rows, in.cols, [&](int64_t row) {
    const T *gate = in.gate + row * in.gate_stride, *up = in.up + row * in.up_stride;
    T* out = output + row * in.cols;
    for_each_vec<T>(in.cols, [&](int64_t c, auto load, auto store) {
      const Vec<T> g = load(gate + c);
      store(out + c, g * sigmoid(g) * load(up + c));
    });
  });
}

template <typename T>
void swiglu_backward(const Swiglu<T>& in, const T* grad_output, T* grad_gate, T* grad_up, int64_t grad_stride) {
  for_each_row(in.rows, in.cols, [&](int64_t row) {
    const T *gate = in.gate + row * in.gate_stride, *up = in.up + row * in.up_stride;
    const T* grad = grad_output + row * in.cols;
    T *to_gate = grad_gate + row * grad_stride, *to_up = grad_up + row * grad_stride;
    for_each_vec<T>(in.cols, [&](int64_t c, auto load, auto store) {
      const Vec<T> one(1), g = load(gate + c), d = load(grad + c), s = sigmoid(g);
      store(to_gate + c, d * load(up + c) * s * at::vec::fmadd(g, one - s, one));
      store(to_up + c, d * g * s);
    });
  });
}

#define INSTANTIATE(T)                                   \
  template void swiglu_forward<T>(const Swiglu<T>&, T*); \
  template void swiglu_backward<T>(const Swiglu<T>&, const T*, T*, T*, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
