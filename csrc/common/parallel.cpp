#include "common/parallel.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>

namespace fastllm {

int max_threads() {
  return at::get_num_threads();
}

void parallel_for(int64_t tasks, c10::function_ref<void(int64_t)> body) {
  if (tasks <= 1 || max_threads() == 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;
  // No num_threads clause: changing the team's size makes libgomp rebuild its pool (pytorch/pytorch#32008).
#pragma omp parallel
  {
    try {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

namespace {

constexpr std::align_val_t kAlignment{64};
constexpr int kSlots = 4;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { ::operator delete(data, kAlignment); }
};

thread_local Buffer buffers[kSlots];

}  // namespace

void* scratch_bytes(size_t bytes, int slot) {
  if (slot < 0 || slot >= kSlots) throw std::out_of_range("fastllm: scratch slot out of range");
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    ::operator delete(buffer.data, kAlignment);
    buffer.data = nullptr;
    buffer.bytes = 0;
    buffer.data = ::operator new(bytes, kAlignment);
    buffer.bytes = bytes;
  }
  return buffer.data;
}

}  // namespace fastllm
