#include "emulator/library.h"

#include <c10/core/CPUAllocator.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <sstream>

#include "bindings.h"
#include "device.h"
#include "device_memory.h"
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

// torch's own allocator, and a note of what ops allocate while they run.
class NotingAllocator : public c10::Allocator {
 public:
  explicit NotingAllocator(c10::Allocator* torch) { torch_ = torch; }

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr data = torch_->allocate(bytes);
    if (ops_running == 0 || bytes == 0) return data;
    note_allocation(reinterpret_cast<uintptr_t>(data.get()), bytes, -1);
    (void)data.compare_exchange_deleter(torch_->raw_deleter(), &NotingAllocator::release);
    return data;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { torch_->copy_data(to, from, bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return torch_->raw_deleter(); }

 private:
  static void release(void* pointer) {
    note_release(reinterpret_cast<uintptr_t>(pointer));
    torch_->raw_deleter()(pointer);
  }

  static inline c10::Allocator* torch_ = nullptr;
};

}  // namespace

void note_allocation(uintptr_t begin, size_t bytes, int device) {
  if (ops_running > 0 && bytes > 0) {
    memory.buffers().push_back({begin, begin + bytes, "a tensor that the op allocated", true, true, device});
  }
}

void note_release(uintptr_t begin) {
  if (ops_running == 0) return;
  auto& buffers = memory.buffers();
  buffers.erase(std::remove_if(buffers.begin(), buffers.end(),
                               [&](const Buffer& buffer) { return buffer.begin == begin && buffer.allocated; }),
                buffers.end());
}

void note_allocations(bool on) {
  static c10::Allocator* const torch = c10::GetCPUAllocator();
  static NotingAllocator noting(torch);
  constexpr uint8_t kPriority = 100;  // over torch's own
  c10::SetCPUAllocator(on ? &noting : torch, kPriority);
}

// ---------------------------------------------------------------------------------------------------------------------
// What an op is given
// ---------------------------------------------------------------------------------------------------------------------

OpScope::OpScope(const std::string& name)
    : caller_(running_op()), device_(current_device()), stream_(current_stream_number(device_)) {
  set_running_op(name.substr(name.rfind(':') + 1));
  ++ops_running;
  ++ops_started;
}

OpScope::~OpScope() {
  set_running_op(caller_);
  if (--ops_running == 0) memory.buffers().clear();
}

void OpScope::check_host() const {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw Fault(running_op() + ": does not tell that a launch failed: " + cudaGetErrorString(error));
  device_memory().check_untouched(running_op());
  if (current_device() != device_ || current_stream_number(device_) != stream_) {
    throw Fault(running_op() + ": leaves cuda:" + std::to_string(current_device()) + " current, on " +
                text(current_stream()) + ", where it found cuda:" + std::to_string(device_) + ", on " +
                text(stream_handle(device_, stream_)));
  }
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
  memory.buffers().push_back({begin, begin + static_cast<size_t>(last + 1) * tensor.element_size(), name.str(),
                              writable, false, tensor.is_cuda() ? static_cast<int>(tensor.get_device()) : -1});
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
  const cudaError_t left = cudaGetLastError();
  if (left != cudaSuccess) {
    throw EmulatorError((running_op() + ": leaves the error of a launch behind: " + cudaGetErrorString(left)).c_str());
  }
  try {
    throw;
  } catch (const Fault& fault) {
    throw EmulatorError(fault.what());
  }
}

}  // namespace emulator
