#include "device.h"

#include <array>
#include <utility>

#include "device_memory.h"
#include "fault.h"

namespace emulator {

namespace {

thread_local int device = 0;
thread_local std::array<int64_t, kDevices> streams{};
Graph* being_captured = nullptr;
bool waiting_is_forbidden = false;
std::string op, op_that_failed;
uint64_t launch_count = 0, failing_launch = 0;
cudaError_t failure = cudaSuccess;

}  // namespace

const Properties& properties(int number) {
  static const Properties all[kDevices] = {{9, 0, 132, 227 * 1024, 228 * 1024},   // H100 SXM
                                           {8, 0, 108, 163 * 1024, 164 * 1024}};  // A100
  return all[number];
}

int current_device() {
  return device;
}

void set_current_device(int number) {
  if (number < 0 || number >= kDevices) throw Fault("there is no device cuda:" + std::to_string(number));
  device = number;
}

// ---------------------------------------------------------------------------------------------------------------------
// Streams
// ---------------------------------------------------------------------------------------------------------------------

constexpr uintptr_t kFirstHandle = 0x5000000000;  // no address of anything

int64_t current_stream_number(int number) {
  return streams[static_cast<size_t>(number)];
}

int64_t exchange_stream_number(int on, int64_t number) {
  return std::exchange(streams[static_cast<size_t>(on)], number);
}

cudaStream_t stream_handle(int on, int64_t number) {
  if (number == 0) return nullptr;
  return reinterpret_cast<cudaStream_t>(kFirstHandle + static_cast<uintptr_t>(number) * kDevices +
                                        static_cast<uintptr_t>(on));
}

cudaStream_t current_stream() {
  return stream_handle(device, current_stream_number(device));
}

std::string text(cudaStream_t stream) {
  if (!stream) return "the default stream";
  const uintptr_t code = reinterpret_cast<uintptr_t>(stream) - kFirstHandle;
  return "stream " + std::to_string(code / kDevices) + " of cuda:" + std::to_string(code % kDevices);
}

void check_stream(const std::string& who, cudaStream_t stream) {
  if (stream == current_stream()) return;
  throw Fault(who + ": goes to " + text(stream) + " while the current device is cuda:" + std::to_string(device) +
              ", the current stream " + text(current_stream()));
}

// ---------------------------------------------------------------------------------------------------------------------
// Graphs
// ---------------------------------------------------------------------------------------------------------------------

Graph::~Graph() {
  if (being_captured == this) end();
  for (const uintptr_t block : blocks_) device_memory().disown(block);
}

Graph* Graph::capturing() {
  return being_captured;
}

void Graph::begin() {
  if (being_captured) throw Fault("a graph is being captured already");
  being_captured = this;
}

void Graph::end() {
  being_captured = nullptr;
}

void Graph::replay() {
  if (being_captured) throw Fault("a graph cannot be replayed while one is captured");
  {
    const DeviceMemory::Access access;
    for (const uintptr_t block : blocks_) device_memory().poison(block);
  }
  for (const auto& work : work_) work();
}

void submit(std::function<void()> work) {
  being_captured ? being_captured->add(std::move(work)) : work();
}

void host_waits(const std::string& what) {
  if (!being_captured && !waiting_is_forbidden) return;
  const std::string who = op.empty() ? "" : op + ": ";
  throw Fault(who + what + " makes the host wait for the device, " +
              (being_captured ? "which cannot be captured in a graph" : "which is forbidden here"));
}

void forbid_waiting(bool forbid) {
  waiting_is_forbidden = forbid;
}

// ---------------------------------------------------------------------------------------------------------------------
// Ops and launches
// ---------------------------------------------------------------------------------------------------------------------

void set_running_op(const std::string& name) {
  op = name;
}

const std::string& running_op() {
  return op;
}

uint64_t launches() {
  return launch_count;
}

void fail_launch(uint64_t countdown, cudaError_t error) {
  failing_launch = countdown == 0 ? 0 : launch_count + countdown;
  failure = error;
}

cudaError_t count_launch() {
  if (++launch_count != failing_launch) return cudaSuccess;
  op_that_failed = op;
  return failure;
}

const std::string& failed_op() {
  return op_that_failed;
}

}  // namespace emulator
