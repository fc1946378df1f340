// The devices as the host sees them: which one is current and on which stream, and whether what the host asks for is
// done at once or kept in a graph. Knows nothing of torch.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"
#include "emulator/stream.h"

namespace emulator {

constexpr int kDevices = 2;

// What kernels and launches depend on. The devices differ in all of it, so that a figure of the wrong one shows.
struct Properties {
  int major, minor, multiprocessors, shared_optin, shared_per_multiprocessor;
};
const Properties& properties(int device);

int current_device();
void set_current_device(int device);

// Streams are numbered, 0 is a device's default; a handle tells number and device, but for the default's, which is null
// on every device, as CUDA's is.
int64_t current_stream_number(int device);
int64_t exchange_stream_number(int device, int64_t number);
cudaStream_t stream_handle(int device, int64_t number);
std::string text(cudaStream_t stream);  // "stream 3 of cuda:1", "the default stream"

// Throws a fault that names `who` unless `stream` is the current one of the current device.
void check_stream(const std::string& who, cudaStream_t stream);

// What was asked for while it was captured, in order. The memory that was allocated then is its own until it ends.
class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();

  static Graph* capturing();  // the one that is being captured, or null
  void begin();
  void end();

  void add(std::function<void()> work) { work_.push_back(std::move(work)); }
  // Its memory is filled with NaN first: no replay may depend on what an earlier one left there.
  void replay();
  size_t size() const { return work_.size(); }

  void own(uintptr_t block) { blocks_.push_back(block); }

 private:
  std::vector<std::function<void()>> work_;
  std::vector<uintptr_t> blocks_;
};

// Does the work now or, while a graph is captured, at each of its replays.
void submit(std::function<void()> work);

// Throws a fault where the host must not wait for the device: while a graph is captured, and between
// forbid_waiting(true) and (false). `what` needs the device's answer.
void host_waits(const std::string& what);
void forbid_waiting(bool forbid);

// The op that runs, for reports; empty if none does.
void set_running_op(const std::string& name);
const std::string& running_op();

// Launches so far; the `countdown`-th from now (1: the next) fails with `error`, within the op of this name.
uint64_t launches();
void fail_launch(uint64_t countdown, cudaError_t error);
cudaError_t count_launch();  // what it fails with
const std::string& failed_op();

}  // namespace emulator
