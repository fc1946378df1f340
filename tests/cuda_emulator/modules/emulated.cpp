// The Python module `emulated`: fastllm's CUDA implementations as torch's CPU kernels, for as long as they are
// installed.
#include "ops/op.h"

#include "bindings.h"
#include "install.h"

PYBIND11_MODULE(emulated, m) {
  emulator::bind_runtime(m);
  emulator::bind_install(m, "fastllm");
}
