#include "cpu/embedding.h"

#include <vector>

#include "cpu/row_blocks.h"
#include "cpu/simd.h"

namespace fastllm {

template <typename T>
void embedding_forward(int64_t count, int64_t length, int64_t channels, const int64_t* tokens, const T* weight,
                       const T* position, int64_t offset, T* output) {
  const RowBlocks blocks = RowBlocks::of_elements(count, channels);
  parallel_for(blocks.count, [&](int64_t block) {
    for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      const T* row = weight + tokens[i] * channels;
      const T* where = position ? position + (offset + i % length) * channels : nullptr;
      T* out = output + i * channels;
      if (where == nullptr) {
        std::memcpy(out, row, static_cast<size_t>(channels) * sizeof(T));
        continue;
      }
      for_each_vec<T>(channels,
                      [&](int64_t c, auto load, auto store) { store(out + c, load(row + c) + load(where + c)); });
    }
  });
}

// Positions are sorted by token (a counting sort keeps their order), then a task sums the buckets of some tokens. In a
// small vocabulary, of few and long buckets, tasks take columns too. In a large one they take whole rows: most of those
// are zeros to be written, and two threads that write one page of fresh memory wait for each other.
template <typename T>
void embedding_backward(int64_t count, int64_t vocabulary, int64_t channels, const int64_t* tokens, int64_t padding,
                        const T* grad_output, T* grad_weight) {
  using C = Compute<T>;
  std::vector<int64_t> first(vocabulary + 1), order(count);
  for (int64_t i = 0; i < count; ++i) ++first[tokens[i] + 1];
  for (int64_t v = 0; v < vocabulary; ++v) first[v + 1] += first[v];
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t i = 0; i < count; ++i) order[next[tokens[i]]++] = i;

  constexpr int64_t kTokens = 64;  // vocabulary rows a task
  constexpr int64_t kEnoughTasks = 64;
  const int64_t row_tasks = ceil_div(vocabulary, kTokens);
  const int64_t cols = row_tasks >= kEnoughTasks ? channels : std::min<int64_t>(64, channels);
  const int64_t col_tasks = cols ? ceil_div(channels, cols) : 0;
  parallel_for(row_tasks * col_tasks, [&](int64_t task) {
    const int64_t begin = task / col_tasks * kTokens, end = std::min(vocabulary, begin + kTokens);
    const int64_t col = task % col_tasks * cols, width = std::min(cols, channels - col);
    C* sums = scratch<C>(cols);
    for (int64_t v = begin; v < end; ++v) {
      T* out = grad_weight + v * channels + col;
      if (v == padding || first[v] == first[v + 1]) {
        std::fill(out, out + width, T(0));
        continue;
      }
      std::fill(sums, sums + width, C(0));
      for (int64_t j = first[v]; j < first[v + 1]; ++j) {
        const T* grad = grad_output + order[j] * channels + col;
        for_each_vec<T>(width,
                        [&](int64_t c, auto load, auto store) { store(sums + c, load(sums + c) + load(grad + c)); });
      }
      for (int64_t c = 0; c < width; ++c) out[c] = static_cast<T>(sums[c]);
    }
  });
}

template <typename T>
void position_backward(int64_t count, int64_t length, int64_t positions, int64_t channels, int64_t offset,
                       const T* grad_output, T* grad_position) {
  using C = Compute<T>;
  parallel_for(positions, [&](int64_t p) {
    C* sums = scratch<C>(channels);
    std::fill(sums, sums + channels, C(0));
    const int64_t t = p - offset;
    for (int64_t i = t; t >= 0 && t < length && i < count; i += length) {
      const T* grad = grad_output + i * channels;
      for_each_vec<T>(channels,
                      [&](int64_t c, auto load, auto store) { store(sums + c, load(sums + c) + load(grad + c)); });
    }
    for (int64_t c = 0; c < channels; ++c) grad_position[p * channels + c] = static_cast<T>(sums[c]);
  });
}

#define INSTANTIATE(T)                                                                                         \
  template void embedding_forward(int64_t, int64_t, int64_t, const int64_t*, const T*, const T*, int64_t, T*); \
  template void embedding_backward(int64_t, int64_t, int64_t, const int64_t*, int64_t, const T*, T*);          \
  template void position_backward(int64_t, int64_t, int64_t, int64_t, int64_t, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace fastllm
