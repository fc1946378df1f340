#include "cpu/adamw.h"

#include <cmath>

#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {
namespace {

// A task takes this many elements of one tensor, so that small tensors share one parallel region.
constexpr int64_t kChunk = 16 * 1024;

struct Chunk {
  size_t tensor;
  int64_t begin, count;
};

template <typename T>
std::vector<Chunk> cut(const std::vector<AdamWTensor<T>>& tensors) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i)
    for (int64_t begin = 0; begin < tensors[i].count; begin += kChunk)
      chunks.push_back({i, begin, std::min(kChunk, tensors[i].count - begin)});
  return chunks;
}

// Neighbouring chunks together make a task, so that many tiny tensors are not many tasks.
template <typename Body>
void for_each_chunk(const std::vector<Chunk>& chunks, Body&& body) {
  constexpr int64_t kTogether = 4;
  const int64_t count = static_cast<int64_t>(chunks.size());
  parallel_for(ceil_div(count, kTogether), [&](int64_t task) {
    for (int64_t i = task * kTogether; i < std::min(count, (task + 1) * kTogether); ++i) body(i);
  });
}

}  // namespace

template <typename T>
double sum_of_squares(const std::vector<AdamWTensor<T>>& tensors) {
  const std::vector<Chunk> chunks = cut(tensors);
  std::vector<double> sums(chunks.size());
  for_each_chunk(chunks, [&](int64_t i) {
    const T* gradient = tensors[chunks[i].tensor].gradient + chunks[i].begin;
    Vec<T> squares(T(0));
    for_each_vec<T>(chunks[i].count, [&](int64_t c, auto load, auto) {
      const Vec<T> g = load(gradient + c);
      squares = at::vec::fmadd(g, g, squares);
    });
    sums[i] = static_cast<double>(sum_lanes(squares));
  });
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

template <typename T>
void adamw_update(const std::vector<AdamWTensor<T>>& tensors, const AdamWOptions& o) {
  const Vec<T> decay(static_cast<T>(1.0 - o.learning_rate * o.weight_decay)), eps(static_cast<T>(o.eps));
  const Vec<T> beta1(static_cast<T>(o.beta1)), rest1(static_cast<T>(1.0 - o.beta1));
  const Vec<T> beta2(static_cast<T>(o.beta2)), rest2(static_cast<T>(1.0 - o.beta2));
  const Vec<T> scale(static_cast<T>(o.maximize ? -o.gradient_scale : o.gradient_scale));
  const std::vector<Chunk> chunks = cut(tensors);
  for_each_chunk(chunks, [&](int64_t i) {
    const AdamWTensor<T>& t = tensors[chunks[i].tensor];
    const double correction1 = 1.0 - std::pow(o.beta1, t.step);
    const double correction2 = std::sqrt(1.0 - std::pow(o.beta2, t.step));
    const Vec<T> step_size(static_cast<T>(o.learning_rate / correction1));
    const Vec<T> inverse2(static_cast<T>(1.0 / correction2));
    const int64_t at = chunks[i].begin;
    for_each_vec<T>(chunks[i].count, [&](int64_t c, auto load, auto store) {
      const Vec<T> g = load(t.gradient + at + c) * scale;
      const Vec<T> m = at::vec::fmadd(load(t.exp_avg + at + c), beta1, g * rest1);
      const Vec<T> v = at::vec::fmadd(load(t.exp_avg_sq + at + c), beta2, g * g * rest2);
      const Vec<T> p = load(t.parameter + at + c) * decay;
      store(t.exp_avg + at + c, m);
      store(t.exp_avg_sq + at + c, v);
      store(t.parameter + at + c, p - step_size * m / (v.sqrt() * inverse2 + eps));
    });
  });
}

#define INSTANTIATE(T)                                                \
  template double sum_of_squares(const std::vector<AdamWTensor<T>>&); \
  template void adamw_update(const std::vector<AdamWTensor<T>>&, const AdamWOptions&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace fastllm
