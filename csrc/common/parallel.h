// The one way kernels use more than one core. Knows nothing of tensors.
#pragma once

#include <c10/util/FunctionRef.h>

#include <cstddef>
#include <cstdint>

namespace fastllm {

// Runs body(task) for every task in [0, tasks) on torch's intra-op threads and returns when all are done.
//
// Tasks are handed out as threads get free, so a core that is taken away for a while does not hold up the rest. Which
// thread runs which task is therefore open: a task writes only what it alone owns, and how work is cut into tasks must
// depend on shapes, never on the number of threads. Then results are the same, bit for bit, for any number of threads.
void parallel_for(int64_t tasks, c10::function_ref<void(int64_t task)> body);

// The number of threads parallel_for may use: at::get_num_threads().
int max_threads();

// This thread's scratch memory: `bytes` bytes, 64-byte aligned, uninitialised, reused by the next call with the same
// slot on the same thread. Fresh large allocations cost more in page faults than the arithmetic done in them.
void* scratch_bytes(size_t bytes, int slot);

template <typename T>
T* scratch(int64_t count, int slot = 0) {
  return static_cast<T*>(scratch_bytes(static_cast<size_t>(count) * sizeof(T), slot));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

constexpr int64_t round_up(int64_t size, int64_t unit) {
  return ceil_div(size, unit) * unit;
}

}  // namespace fastllm
