// A launch: the limits that a GPU enforces, then block after block in a random order.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "api.h"
#include "block.h"
#include "device.h"
#include "device_memory.h"
#include "emulator/grid.h"
#include "fault.h"
#include "memory.h"
#include "races.h"
#include "traffic.h"

namespace emulator {

namespace {

constexpr uint64_t kMaxBlocks = uint64_t{1} << 24;  // what can be run in reasonable time

cudaError_t check_limits(const Grid& grid) {
  const dim3 b = grid.blocks, t = grid.threads;
  const bool some = b.x && b.y && b.z && t.x && t.y && t.z;
  const uint64_t threads = static_cast<uint64_t>(t.x) * t.y * t.z;
  if (!some || threads > kMaxThreads || t.x > 1024 || t.y > 1024 || t.z > 64) return cudaErrorInvalidConfiguration;
  if (b.x > 0x7FFFFFFFu || b.y > 65535 || b.z > 65535) return cudaErrorInvalidConfiguration;
  if (grid.shared_bytes > max_shared_bytes(grid.key)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void remove_all(std::string& text, const std::string& part) {
  for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

// "fastllm::cuda::{anonymous}::gelu_kernel<float, 4, false>" without the namespaces.
std::string short_name(std::string_view pretty) {
  std::string name(pretty);
  remove_all(name, "{anonymous}::");
  remove_all(name, "<unnamed>::");
  const size_t colons = name.substr(0, name.find('<')).rfind("::");
  if (colons != std::string::npos) remove_all(name, name.substr(0, colons + 2));
  return name;
}

// A launch whose parameters and buffers are its own, so that it can be run at any time.
struct Launch {
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(void* parameters) const { ::operator delete(parameters, kAlignment); }
  };

  std::string name;
  Grid grid;
  int device;
  std::vector<Buffer> buffers;
  std::unique_ptr<void, Delete> parameters;

  Launch(const std::string& name, const Grid& grid)
      : name(name),
        grid(grid),
        device(current_device()),
        buffers(memory.buffers()),
        parameters(::operator new(grid.parameter_bytes, kAlignment)) {
    std::memcpy(parameters.get(), grid.parameters, grid.parameter_bytes);
    this->grid.parameters = parameters.get();
    this->grid.kernel = this->name;
  }

  void run() const {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const DeviceMemory::Access access;
    std::vector<Buffer> of_caller = buffers;
    of_caller.swap(memory.buffers());
    struct PutBack {
      std::vector<Buffer>& buffers;
      ~PutBack() { buffers.swap(memory.buffers()); }
    } const put_back{of_caller};
    const dim3 size = grid.blocks;
    std::vector<uint32_t> order(static_cast<uint64_t>(size.x) * size.y * size.z);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), block.random());
    memory.start_launch(device, grid.shared_bytes, reinterpret_cast<uintptr_t>(grid.parameters), grid.parameter_bytes);
    races.start_launch();
    traffic.start_launch(name);
    for (const uint32_t number : order) {
      block.run(grid, {number % size.x, number / size.x % size.y, number / (size.x * size.y)});
      traffic.end_block();
    }
  }
};

}  // namespace

cudaError_t run(const Grid& grid) {
  const std::string name = short_name(grid.kernel);
  const cudaError_t injected = count_launch();
  const cudaError_t error = injected != cudaSuccess ? injected : check_limits(grid);
  if (error != cudaSuccess) return set_last_error(error);
  check_stream(name, grid.stream);
  const dim3 size = grid.blocks;
  const uint64_t count = static_cast<uint64_t>(size.x) * size.y * size.z;
  if (count > kMaxBlocks) throw Fault("the emulator runs up to 2^24 blocks, got " + std::to_string(count));
  submit([launch = std::make_shared<Launch>(name, grid)] { launch->run(); });
  return cudaSuccess;
}

}  // namespace emulator
