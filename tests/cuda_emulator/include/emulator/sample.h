// How a kernel of the emulator's own tests is made known to Python: SAMPLE(kernel<float>) at the foot of its file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "emulator/grid.h"

namespace emulator {

// An argument as Python gave it.
union Argument {
  void* pointer;
  int64_t integer;
  double real;
};

struct Sample {
  size_t parameters;
  cudaError_t (*launch)(dim3 blocks, dim3 threads, size_t shared_bytes, const std::vector<Argument>& arguments);
  cudaError_t (*allow_shared_bytes)(int bytes);
};

std::map<std::string, Sample>& samples();

template <typename T>
T argument_as(const Argument& argument) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(argument.pointer);
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(argument.real);
  } else {
    return static_cast<T>(argument.integer);
  }
}

template <auto kernel, typename... Args, size_t... kIndex>
cudaError_t launch_sample(dim3 blocks, dim3 threads, size_t shared_bytes, const std::vector<Argument>& arguments,
                          void (*)(Args...), std::index_sequence<kIndex...>) {
  using Parameters = std::tuple<Args...>;
  const Parameters parameters(argument_as<Args>(arguments[kIndex])...);
  return run({kernel_name(__PRETTY_FUNCTION__), reinterpret_cast<const void*>(kernel), blocks, threads, shared_bytes,
              &parameters, sizeof parameters,
              [](const void* from) { std::apply(kernel, *static_cast<const Parameters*>(from)); }});
}

template <auto kernel, typename... Args>
Sample make_sample(void (*)(Args...)) {
  return {sizeof...(Args),
          [](dim3 blocks, dim3 threads, size_t shared_bytes, const std::vector<Argument>& arguments) {
            return launch_sample<kernel>(blocks, threads, shared_bytes, arguments, kernel,
                                         std::index_sequence_for<Args...>());
          },
          [](int bytes) { return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); }};
}

}  // namespace emulator

#define SAMPLE_VARIABLE_(line) sample_at_line_##line
#define SAMPLE_VARIABLE(line) SAMPLE_VARIABLE_(line)
#define SAMPLE(...)                                              \
  [[maybe_unused]] static const bool SAMPLE_VARIABLE(__LINE__) = \
      ::emulator::samples().emplace(#__VA_ARGS__, ::emulator::make_sample<__VA_ARGS__>(__VA_ARGS__)).second
