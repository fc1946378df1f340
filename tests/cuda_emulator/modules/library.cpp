#include "emulator/library.h"

#include <c10/core/CPUAllocator.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <sstream>

#include "bindings.h"
#include "fault.h"
#include "memory.h"

namespace emulator {

std::vector<void (*)(Library&)>& Registration::all() {
  static std::vector<void (*)(Library&)> all;
  return all;
}

// ---------------------------------------------------------------------------------------------------------------------
// What an op allocates
// ---------------------------------------------------------------------------------------------------------------------

namespace {

thread_local int ops_running = 0;
uint64_t ops_started = 0;

void forget(uintptr_t begin) {
  auto& buffers = memory.buffers();
  buffers.erase(std::remove_if(buffers.begin(), buffers.end(),
                               [&](const Buffer& buffer) { return buffer.begin == begin && buffer.allocated; }),
                buffers.end());
}

// torch's own allocator, and a note of what ops allocate while they run.
class NotingAllocator : public c10::Allocator {
 public:
  explicit NotingAllocator(c10::Allocator* torch) { torch_ = torch; }

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr data = torch_->allocate(bytes);
    if (ops_running == 0 || bytes == 0) return data;
    const auto begin = reinterpret_cast<uintptr_t>(data.get());
    memory.buffers().push_back({begin, begin + bytes, "a tensor that the op allocated", true, true});
    data.compare_exchange_deleter(torch_->raw_deleter(), &NotingAllocator::release);
    return data;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { torch_->copy_data(to, from, bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return torch_->raw_deleter(); }

 private:
  static void release(void* pointer) {
    if (ops_running > 0) forget(reinterpret_cast<uintptr_t>(pointer));
    torch_->raw_deleter()(pointer);
  }

  static inline c10::Allocator* torch_ = nullptr;
};

}  // namespace

void note_allocations(bool on) {
  static c10::Allocator* const torch = c10::GetCPUAllocator();
  static NotingAllocator noting(torch);
  constexpr uint8_t kPriority = 100;  // over torch's own
  c10::SetCPUAllocator(on ? &noting : torch, kPriority);
}

// ---------------------------------------------------------------------------------------------------------------------
// What an op is given
// ---------------------------------------------------------------------------------------------------------------------

OpScope::OpScope() {
  ++ops_running;
  ++ops_started;
}

OpScope::~OpScope() {
  if (--ops_running == 0) memory.buffers().clear();
}

uint64_t OpScope::count() {
  return ops_started;
}

// From the first element to the last that the tensor's strides reach.
void OpScope::add(const c10::Argument& argument, const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() == 0) return;
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  std::ostringstream name;
  name << "'" << argument.name() << "' " << tensor.sizes() << " " << tensor.scalar_type();
  const bool writable = argument.alias_info() && argument.alias_info()->isWrite();
  memory.buffers().push_back(
      {begin, begin + static_cast<size_t>(last + 1) * tensor.element_size(), name.str(), writable});
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults
// ---------------------------------------------------------------------------------------------------------------------

namespace {

// torch turns these into the Python class that they name, wherever they cross into Python.
struct EmulatorError : torch::PyTorchError {
  explicit EmulatorError(const char* what) : torch::PyTorchError(what) {}
  PyObject* python_type() override { return error_class(); }
};

}  // namespace

void rethrow_fault() {
  try {
    throw;
  } catch (const Fault& fault) {
    throw EmulatorError(fault.what());
  }
}

}  // namespace emulator
