// Registration of CUDA implementations as torch's CPU kernels, each wrapped so that the emulator knows, while the op
// runs, which memory its kernels may touch: its tensor arguments (only those written that the schema says are) and what
// the op itself allocates.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

namespace emulator {

// While it lives, an op runs: its tensors are the launches' buffers.
class OpScope {
 public:
  OpScope();
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

  static uint64_t count();  // how many there were so far

  void add(const c10::Argument& argument, const at::Tensor& tensor);
  void add(const c10::Argument& argument, const std::optional<at::Tensor>& tensor) {
    if (tensor) add(argument, *tensor);
  }
  void add(const c10::Argument& argument, at::ArrayRef<at::Tensor> tensors) {
    for (const at::Tensor& tensor : tensors) add(argument, tensor);
  }
  template <typename Other>
  void add(const c10::Argument&, const Other&) {}
};

// Within a catch block: throws on what was caught, a kernel's fault as Python's EmulatorError.
[[noreturn]] void rethrow_fault();

// Whether CPU tensors that a running op allocates are noted.
void note_allocations(bool on);

template <typename Function>
class Op;

template <typename Return, typename... Args>
class Op<Return(Args...)> {
 public:
  Op(Return (*function)(Args...), const c10::FunctionSchema& schema) : function_(function), schema_(schema) {}

  Return operator()(Args... args) {
    OpScope scope;
    size_t at = 0;
    (scope.add(schema_.arguments()[at++], args), ...);
    try {
      return function_(args...);
    } catch (...) {
      rethrow_fault();
    }
  }

 private:
  Return (*function_)(Args...);
  c10::FunctionSchema schema_;
};

class Library {
 public:
  explicit Library(const char* name_space)
      : name_space_(name_space),
        library_(torch::Library::IMPL, name_space, c10::DispatchKey::CPU, __FILE__, __LINE__) {}

  template <typename Return, typename... Args>
  void impl(const char* name, Return (*function)(Args...)) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow((name_space_ + "::" + name).c_str(), "");
    library_.impl(name, Op<Return(Args...)>(function, op.schema()));
    names_.emplace_back(name);
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::string name_space_;
  torch::Library library_;
  std::vector<std::string> names_;
};

struct Registration {
  explicit Registration(void (*add_to)(Library&)) { all().push_back(add_to); }
  static std::vector<void (*)(Library&)>& all();
};

}  // namespace emulator
