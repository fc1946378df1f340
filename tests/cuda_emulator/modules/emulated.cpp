// The Python module `emulated`: fastllm's CUDA implementations as torch's CPU kernels, for as long as they are
// installed.
#include "ops/op.h"

#include <c10/util/Exception.h>
#include <pybind11/stl.h>

#include <memory>

#include "bindings.h"
#include "emulator/library.h"

namespace emulator {

namespace {

std::unique_ptr<Library> installed;

struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

std::vector<std::string> install() {
  note_allocations();
  if (!installed) {
    Silence silence;  // torch warns of kernels that replace others, which is what is wanted here
    const c10::WarningUtils::WarningHandlerGuard guard(&silence);
    installed = std::make_unique<Library>();
    for (auto* add_to : Registration::all()) add_to(*installed);
  }
  return installed->names();
}

void uninstall() {
  installed.reset();
}

}  // namespace

}  // namespace emulator

PYBIND11_MODULE(emulated, m) {
  emulator::bind_runtime(m);
  m.def("install", &emulator::install, "Have CPU tensors run the emulated kernels; return the names of the ops.");
  m.def("uninstall", &emulator::uninstall, "Have CPU tensors run the CPU's kernels again.");
  m.def("calls", &emulator::OpScope::count, "How many calls of emulated implementations there were.");
}
