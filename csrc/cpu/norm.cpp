#include "cpu/norm.h"

#include <vector>

#include "cpu/dropout_mask.h"
#include "cpu/row_blocks.h"

namespace fastllm {
namespace {

using at::vec::fmadd;

// ---------------------------------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------------------------------

// new_residual = residual + dropout(input + input_bias) for one row; returns where the row now is.
template <typename T>
const T* add_row(const NormForward<T>& a, int64_t row) {
  const T* in = a.input + row * a.cols;
  if (a.residual == nullptr) return in;
  const T* residual = a.residual + row * a.cols;
  T* out = a.new_residual + row * a.cols;
  const Compute<T>* keep = nullptr;
  if (a.dropout) {
    keep = dropout_multipliers(*a.dropout, row * a.cols, a.cols, scratch<Compute<T>>(a.cols + kDropoutMargin));
  }
  for_each_vec<T>(a.cols, [&](int64_t c, auto load, auto store) {
    Vec<T> x = load(in + c);
    if (a.input_bias) x = x + load(a.input_bias + c);
    store(out + c, keep ? fmadd(x, load(keep + c), load(residual + c)) : x + load(residual + c));
  });
  return out;
}

// What a row is normalised by. Its mean is `mean` + `rest`: float32 alone is up to 0.03 off a mean of a million.
template <typename C>
struct Statistics {
  C mean = 0, rest = 0;
  C square;  // mean square of what deviates from it
};

// The mean first, then what deviates from it: a second pass over a row that is in L1 costs little, and E[x^2] - E[x]^2
// would lose everything where the mean is large. The first pass sums deviations too, from the row's first element: sums
// of large elements would be far off. What still is off, where that element was none like the others, is what the
// second pass finds their mean deviation to be.
template <typename T>
Statistics<Compute<T>> statistics_of(const NormForward<T>& a, const T* in) {
  using C = Compute<T>;
  const double share = 1.0 / static_cast<double>(a.cols);
  if (a.rms) {
    const auto [squares] = sum_row<T, 1>(a.cols, [&](int64_t c, auto load, auto, auto& sums) {
      const Vec<T> x = load(in + c);
      sums[0] = fmadd(x, x, sums[0]);
    });
    return {.square = static_cast<C>(squares * share)};
  }
  const C first = a.cols > 0 ? static_cast<C>(in[0]) : C(0);
  const auto [shifted] = sum_row<T, 1>(
      a.cols, [&](int64_t c, auto load, auto, auto& sums) { sums[0] = sums[0] + (load(in + c) - Vec<T>(first)); },
      first);
  const C about = static_cast<C>(first + shifted * share);
  const auto [deviations, squares] = sum_row<T, 2>(
      a.cols,
      [&](int64_t c, auto load, auto, auto& sums) {
        const Vec<T> d = load(in + c) - Vec<T>(about);
        sums[0] = sums[0] + d;
        sums[1] = fmadd(d, d, sums[1]);
      },
      about);
  const double off = deviations * share;
  const C mean = static_cast<C>(about + off);
  const double variance = squares * share - off * off;
  return {mean, static_cast<C>(static_cast<double>(about) - mean + off), static_cast<C>(std::max(variance, 0.0))};
}

template <typename T>
void normalize_row(const NormForward<T>& a, int64_t row, const T* in) {
  using C = Compute<T>;
  T* out = a.output + row * a.cols;
  const Statistics<C> s = statistics_of(a, in);
  const C rstd = C(1) / std::sqrt(s.square + static_cast<C>(a.eps));
  const Vec<T> center(s.mean), scale(rstd), shift(-s.rest * rstd);
  for_each_vec<T>(a.cols, [&](int64_t c, auto load, auto store) {
    Vec<T> y = fmadd(load(in + c) - center, scale, shift);
    if (a.weight) y = y * load(a.weight + c);
    if (a.bias) y = y + load(a.bias + c);
    store(out + c, y);
  });
  if (!a.rms) a.mean[row] = s.mean;
  a.rstd[row] = rstd;
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------------------------------

// A block's own sums over its rows.
template <typename C>
struct Sums {
  C* weight;
  C* bias;
  C* input_bias;
};

// With g = dy w and xhat the normalised row: dx = rstd (g - mean(g) - xhat mean(g xhat)), the middle term for layer
// norm only; plus what came for the residual stream.
template <typename T>
void gradient_row(const NormBackward<T>& a, int64_t row, const Sums<Compute<T>>& sums) {
  using C = Compute<T>;
  const T* x = a.normalized + row * a.cols;
  const T* dy = a.grad_output ? a.grad_output + row * a.cols : nullptr;
  const T* more = a.grad_residual ? a.grad_residual + row * a.cols : nullptr;
  T* dx = a.grad_normalized + row * a.cols;
  const Vec<T> center(a.rms ? C(0) : a.mean[row]), rstd(a.rstd[row]);
  std::array<double, 2> totals{};  // of g and of g xhat
  if (dy) {
    totals = sum_row<T, 2>(a.cols, [&](int64_t c, auto load, auto store, auto& total) {
      const Vec<T> d = load(dy + c), xhat = (load(x + c) - center) * rstd;
      const Vec<T> g = a.weight ? d * load(a.weight + c) : d;
      total[0] = total[0] + g;
      total[1] = fmadd(g, xhat, total[1]);
      if (sums.weight) store(sums.weight + c, fmadd(d, xhat, load(sums.weight + c)));
      if (sums.bias) store(sums.bias + c, load(sums.bias + c) + d);
    });
  }
  const double share = 1.0 / static_cast<double>(a.cols);
  const Vec<T> mean_g(a.rms ? C(0) : static_cast<C>(totals[0] * share)), mean_gx(static_cast<C>(totals[1] * share));
  const C* keep = nullptr;
  if (a.dropout) {
    keep = dropout_multipliers(*a.dropout, row * a.cols, a.cols, scratch<C>(a.cols + kDropoutMargin));
  }
  T* dropped = a.grad_input ? a.grad_input + row * a.cols : nullptr;
  for_each_vec<T>(a.cols, [&](int64_t c, auto load, auto store) {
    Vec<T> d(C(0));
    if (dy) {
      const Vec<T> xhat = (load(x + c) - center) * rstd;
      const Vec<T> g = a.weight ? load(dy + c) * load(a.weight + c) : load(dy + c);
      d = rstd * (g - mean_g - xhat * mean_gx);
    }
    if (more) d = d + load(more + c);
    store(dx + c, d);
    if (keep) d = d * load(keep + c);
    if (dropped) store(dropped + c, d);
    if (sums.input_bias) store(sums.input_bias + c, load(sums.input_bias + c) + d);
  });
}

}  // namespace

template <typename T>
void norm_forward(const NormForward<T>& a) {
  const RowBlocks blocks = RowBlocks::of_elements(a.rows, a.cols);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) normalize_row(a, row, add_row(a, row));
  });
}

template <typename T>
void norm_backward(const NormBackward<T>& a) {
  using C = Compute<T>;
  C* const wanted[] = {a.grad_weight, a.grad_bias, a.grad_input_bias};
  const bool any = a.grad_weight || a.grad_bias || a.grad_input_bias;
  const RowBlocks blocks = any ? RowBlocks::for_sums(a.rows, a.cols) : RowBlocks::of_elements(a.rows, a.cols);
  const int64_t size = blocks.count * a.cols;
  std::vector<C> partials[3];
  for (int i = 0; i < 3; ++i) partials[i].resize(wanted[i] ? size : 0);
  parallel_for(blocks.count, [&](int64_t block) {
    const auto mine = [&](int i) { return wanted[i] ? partials[i].data() + block * a.cols : nullptr; };
    const Sums<C> sums{mine(0), mine(1), mine(2)};
    for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) gradient_row(a, row, sums);
  });
  for (int i = 0; i < 3; ++i) {
    if (wanted[i]) sum_partials<C>(partials[i].data(), blocks.count, a.cols, wanted[i]);
  }
}

#define INSTANTIATE(T)                               \
  template void norm_forward(const NormForward<T>&); \
  template void norm_backward(const NormBackward<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
