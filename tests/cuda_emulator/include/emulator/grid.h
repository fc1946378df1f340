// How a grid is run: the host's side of a launch.
#pragma once

#include <cstddef>
#include <string_view>

#include "cuda_runtime.h"

namespace emulator {

struct Grid {
  std::string_view kernel;  // its name, for reports
  const void* key;          // its address, for attributes
  dim3 blocks, threads;
  size_t shared_bytes;
  const void* parameters;  // what the kernel may read besides its buffers
  size_t parameter_bytes;
  void (*call)(const void* parameters);  // one thread's work
  cudaStream_t stream = nullptr;
};

// Runs every thread to its end, or adds that to the graph that is captured, and returns what a launch returns on a GPU.
// Throws Fault where the launch or the kernel does what a GPU would let pass.
cudaError_t run(const Grid& grid);

// A kernel's name out of __PRETTY_FUNCTION__ of a function that has it as its template argument `kernel`.
constexpr std::string_view kernel_name(std::string_view pretty) {
  constexpr std::string_view kBefore = "kernel = ";
  const size_t from = pretty.find(kBefore) + kBefore.size();
  const size_t end = pretty.find_first_of(";]", from);
  return pretty.substr(from, end - from);
}

}  // namespace emulator
