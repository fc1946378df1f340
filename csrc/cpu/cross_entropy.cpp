#include "cpu/cross_entropy.h"

#include "cpu/row_blocks.h"

namespace fastllm {
namespace {

// Logits are read from memory once: a block of this many (4 KiB in fp32) is reduced to its maximum and, while it is in
// L1, to its sum of exponentials relative to the running maximum (Milakov & Gimelshein, "Online normalizer calculation
// for softmax", 2018, a block at a time).
constexpr int64_t kBlock = 1024;

template <typename T>
struct RowSums {
  Compute<T> maximum;   // 0 where all are -inf: subtracting -inf from -inf would make NaN of what is a sum of zeros
  Compute<T> sum;       // of exponentials against the maximum
  Compute<T> weighted;  // sum_c w_c (logits_c - maximum); only where label smoothing asks for it
};

template <typename T>
RowSums<T> reduce_row(const T* row, int64_t classes, const Compute<T>* weight, bool want_weighted) {
  using C = Compute<T>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  C maximum = kLowest, last_shift = 0, sum = 0, weighted = 0, weights = 0;
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t count = std::min(kBlock, classes - begin);
    const T* block = row + begin;
    Vec<T> lanes(kLowest);
    for_each_vec<T>(
        count, [&](int64_t c, auto load, auto) { lanes = at::vec::maximum(lanes, load(block + c)); }, kLowest);
    const C block_maximum = max_lanes(lanes);
    const C next = (block_maximum > maximum || block_maximum != block_maximum) ? block_maximum : maximum;
    const C shift = next == kLowest ? C(0) : next;
    Vec<T> sums(C(0));
    for_each_vec<T>(
        count, [&](int64_t c, auto load, auto) { sums = sums + vexp_nonpositive(load(block + c) - Vec<T>(shift)); },
        kLowest);
    sum = sum * std::exp(maximum - shift) + sum_lanes(sums);
    maximum = next;
    if (want_weighted) {
      Vec<T> terms(C(0)), block_weights(C(0));
      if (weight) {
        for_each_vec<T>(count, [&](int64_t c, auto load, auto) {
          const Vec<T> w = load(weight + begin + c);
          terms = at::vec::fmadd(load(block + c) - Vec<T>(shift), w, terms);
          block_weights = block_weights + w;
        });
      } else {
        for_each_vec<T>(
            count, [&](int64_t c, auto load, auto) { terms = terms + (load(block + c) - Vec<T>(shift)); }, shift);
      }
      weighted += weights * (last_shift - shift) + sum_lanes(terms);
      weights += weight ? sum_lanes(block_weights) : static_cast<C>(count);
      last_shift = shift;
    }
  }
  return {maximum == kLowest ? C(0) : maximum, sum, weighted};
}

template <typename T>
void gradient_row(const CrossEntropyRows<T>& in, int64_t row, const SoftmaxStatistics<Compute<T>>& statistics,
                  Compute<T> grad, T* out) {
  using C = Compute<T>;
  const T* logits = in.logits + row * in.classes;
  const int64_t target = in.target[row];
  if (target == in.ignore_index) {
    std::fill(out, out + in.classes, T(0));
    return;
  }
  const C uniform = in.label_smoothing / static_cast<C>(in.classes);
  const C on_target = (C(1) - in.label_smoothing) * (in.weight ? in.weight[target] : C(1));
  // d loss / d logits_c = p_c (on_target + uniform sum w) - uniform w_c, less on_target at the target itself.
  const C on_probability = (on_target + uniform * in.weight_sum) * statistics.inverse_sum;
  const Vec<T> scale(grad * on_probability), flat(grad * uniform), shift(statistics.maximum);
  const bool smooth = in.label_smoothing != C(0);
  // The target's logit is read before the row is overwritten: logits and gradient may be the same memory.
  const C exponential = std::exp(static_cast<C>(logits[target]) - statistics.maximum);
  for_each_vec<T>(in.classes, [&](int64_t c, auto load, auto store) {
    Vec<T> dx = vexp_nonpositive(load(logits + c) - shift) * scale;
    if (smooth) dx = dx - (in.weight ? flat * load(in.weight + c) : flat);
    store(out + c, dx);
  });
  const C flat_target = smooth ? uniform * (in.weight ? in.weight[target] : C(1)) : C(0);
  out[target] = static_cast<T>(grad * (exponential * on_probability - flat_target - on_target));
}

}  // namespace

template <typename T>
void cross_entropy_forward(const CrossEntropyRows<T>& in, Compute<T>* loss, SoftmaxStatistics<Compute<T>>* statistics) {
  using C = Compute<T>;
  const RowBlocks blocks = RowBlocks::of_elements(in.rows, in.classes);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      const T* logits = in.logits + row * in.classes;
      const bool smooth = in.label_smoothing != C(0);
      const RowSums<T> sums = reduce_row(logits, in.classes, in.weight, smooth);
      statistics[row] = {sums.maximum, C(1) / sums.sum};
      const int64_t target = in.target[row];
      if (target == in.ignore_index) {
        loss[row] = C(0);
        continue;
      }
      const C weight = in.weight ? in.weight[target] : C(1);
      const C log_sum = std::log(sums.sum);
      const C on_target = (sums.maximum - static_cast<C>(logits[target])) + log_sum;
      loss[row] = (C(1) - in.label_smoothing) * weight * on_target;
      if (smooth) {
        const C uniform = in.label_smoothing / static_cast<C>(in.classes);
        loss[row] += uniform * (in.weight_sum * log_sum - sums.weighted);
      }
    }
  });
}

template <typename T>
void cross_entropy_backward(const CrossEntropyRows<T>& in, const SoftmaxStatistics<Compute<T>>* statistics,
                            const Compute<T>* grad_loss, T* grad_logits) {
  const RowBlocks blocks = RowBlocks::of_elements(in.rows, in.classes);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
      gradient_row(in, row, statistics[row], grad_loss[row], grad_logits + row * in.classes);
    }
  });
}

#define INSTANTIATE(T)                                                                                             \
  template void cross_entropy_forward<T>(const CrossEntropyRows<T>&, Compute<T>*, SoftmaxStatistics<Compute<T>>*); \
  template void cross_entropy_backward<T>(const CrossEntropyRows<T>&, const SoftmaxStatistics<Compute<T>>*,        \
                                          const Compute<T>*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
