// The Python module `emulated`: fastllm's CUDA implementations as torch's kernels for CPU tensors, for as long as they
// are installed, or for tensors on the emulated devices, for as long as these are connected.
#include "ops/op.h"

#include "bindings.h"
#include "install.h"
#include "torch_device.h"

PYBIND11_MODULE(emulated, m) {
  emulator::bind_runtime(m);
  emulator::bind_install(m, "fastllm");
  emulator::bind_torch_device(m, "fastllm");
}
