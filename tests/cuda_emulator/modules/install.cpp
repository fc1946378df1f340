#include "ops/op.h"

#include "install.h"

#include <c10/util/Exception.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "emulator/library.h"

namespace emulator {

namespace {

std::unique_ptr<Library> installed;

struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

std::vector<std::string> install(const char* name_space) {
  if (!installed) {
    auto library = std::make_unique<Library>(name_space, c10::DispatchKey::CPU);
    without_warnings([&] {
      for (auto* add_to : Registration::all()) add_to(*library);
    });
    installed = std::move(library);
    note_allocations(true);
  }
  return installed->names();
}

void uninstall() {
  if (installed) note_allocations(false);
  installed.reset();
}

}  // namespace

void without_warnings(const std::function<void()>& body) {
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  body();
}

void bind_install(pybind11::module_& m, const char* name_space) {
  m.def(
      "install", [name_space] { return install(name_space); },
      "Have CPU tensors run the emulated kernels; return the names of the ops that do.");
  m.def("uninstall", &uninstall, "Have CPU tensors run the CPU's kernels again.");
  m.def("calls", &OpScope::count, "Return how many calls of emulated implementations there were.");
}

}  // namespace emulator
