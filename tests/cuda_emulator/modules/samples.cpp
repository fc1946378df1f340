// The Python module `samples`: runs the kernels of the emulator's own tests. Knows nothing of torch: an array is given
// as its address, its size and its name.
#include "emulator/sample.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "bindings.h"
#include "memory.h"

namespace py = pybind11;

namespace emulator {

std::map<std::string, Sample>& samples() {
  static std::map<std::string, Sample> all;
  return all;
}

namespace {

using Size = std::array<unsigned, 3>;

const Sample& sample(const std::string& name) {
  const auto it = samples().find(name);
  if (it == samples().end()) throw std::invalid_argument("there is no SAMPLE(" + name + ")");
  return it->second;
}

Argument convert(const py::handle& value) {
  Argument argument{};
  if (py::isinstance<py::tuple>(value)) {
    const auto [address, bytes, name] = value.cast<std::tuple<uintptr_t, size_t, std::string>>();
    memory.buffers().push_back({address, address + bytes, name});
    argument.pointer = reinterpret_cast<void*>(address);
  } else if (py::isinstance<py::float_>(value)) {
    argument.real = value.cast<double>();
  } else {
    argument.integer = value.cast<int64_t>();
  }
  return argument;
}

// Returns the launch's error by name.
std::string launch(const std::string& name, Size blocks, Size threads, size_t shared_bytes, const py::list& values) {
  const Sample& found = sample(name);
  if (values.size() != found.parameters) {
    throw std::invalid_argument(name + " takes " + std::to_string(found.parameters) + " arguments");
  }
  memory.buffers().clear();
  std::vector<Argument> arguments;
  for (const auto& value : values) arguments.push_back(convert(value));
  cudaGetLastError();
  return cudaGetErrorName(
      found.launch({blocks[0], blocks[1], blocks[2]}, {threads[0], threads[1], threads[2]}, shared_bytes, arguments));
}

std::string allow_shared_bytes(const std::string& name, int bytes) {
  return cudaGetErrorName(sample(name).allow_shared_bytes(bytes));
}

}  // namespace

}  // namespace emulator

PYBIND11_MODULE(samples, m) {
  emulator::bind_runtime(m);
  m.def("launch", &emulator::launch);
  m.def("allow_shared_bytes", &emulator::allow_shared_bytes);
}
