#include "bindings.h"

#include <string>
#include <vector>

#include "block.h"
#include "fault.h"
#include "source_lines.h"
#include "traffic.h"

namespace py = pybind11;

namespace emulator {

namespace {

PyObject* python_error = nullptr;  // lives as long as the module that gave it: to the end

// A dict for each instruction that touched memory which threads share.
py::list instructions() {
  std::vector<uintptr_t> sites;
  for (const auto& [kernel, tallies] : traffic.kernels()) {
    for (const auto& [key, tally] : tallies) sites.push_back(Traffic::site_of_key(key));
  }
  const std::vector<std::string> sources = source_lines(sites);
  py::list out;
  for (const auto& [kernel, tallies] : traffic.kernels()) {
    for (const auto& [key, tally] : tallies) {
      py::dict row;
      row["kernel"] = kernel;
      row["source"] = sources[out.size()];
      row["space"] = tally.shared ? "shared" : "global";
      row["writes"] = tally.writes;
      row["bytes"] = tally.bytes;
      row["requests"] = tally.requests;
      row["lanes"] = tally.lanes;
      row["sectors"] = tally.sectors;
      row["passes"] = tally.passes;
      row["fewest_passes"] = tally.fewest;
      out.append(row);
    }
  }
  return out;
}

}  // namespace

PyObject* error_class() {
  return python_error ? python_error : PyExc_RuntimeError;
}

void bind_runtime(py::module_& m) {
  m.def("seed", [](uint64_t seed) { block.seed(seed); }, "Set the order in which threads and blocks run.");
  m.def("instructions", &instructions, "Return what each instruction took of memory since reset().");
  m.def(
      "kernels",
      [] {
        py::set names;
        for (const auto& kernel : traffic.kernels()) names.add(kernel.first);
        return names;
      },
      "Return the names of the kernels that ran since reset().");
  m.def("reset", [] { traffic.reset(); }, "Forget what instructions() tells.");
  m.def("set_error_class", [](py::object python_class) { python_error = python_class.release().ptr(); });
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Fault& fault) {
      PyErr_SetString(error_class(), fault.what());
    }
  });
}

}  // namespace emulator
