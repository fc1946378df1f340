// Registration of CUDA implementations as torch's kernels for CPU tensors or for those of the emulated devices. Each is
// wrapped so that the emulator knows, while the op runs, which memory its kernels may touch: its tensor arguments (only
// those written that the schema says are) and what the op itself allocates.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace emulator {

// While it lives, an op runs: its tensors are the launches' buffers.
class OpScope {
 public:
  explicit OpScope(const std::string& name);
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

  // Throws a fault if the op did on the host what an op on a device must not: read its tensors, leave another device or
  // stream current than it found, or not tell that a launch failed.
  void check_host() const;

 private:
  std::string caller_;
  int device_;
  int64_t stream_;
};

// Within a catch block: throws on what was caught, a fault as Python's EmulatorError. It is a fault of its own to throw
// and leave the runtime's last error set, which the next check would take for its own.
[[noreturn]] void rethrow_fault();

// Whether CPU tensors that a running op allocates are noted.
void note_allocations(bool on);

// Notes what a running op allocates and frees; nothing if none runs.
void note_allocation(uintptr_t begin, size_t bytes, int device);
void note_release(uintptr_t begin);

template <typename Function>
class Op;

template <typename Return, typename... Args>
class Op<Return(Args...)> {
 public:
  Op(Return (*function)(Args...), const c10::FunctionSchema& schema) : function_(function), schema_(schema) {}

  Return operator()(Args... args) {
    OpScope scope(schema_.name());
    size_t at = 0;
    (scope.add(schema_.arguments()[at++], args), ...);
    try {
      if constexpr (std::is_void_v<Return>) {
        function_(args...);
        scope.check_host();
      } else {
        Return result = function_(args...);
        scope.check_host();
        return result;
      }
    } catch (...) {
      rethrow_fault();
    }
  }

 private:
  Return (*function_)(Args...);
  c10::FunctionSchema schema_;
};

// While it lives, torch's products on the CPU, which stand for cuBLAS's, do without oneDNN: on a CPU with AMX it reads
// past the end of rows of bfloat16, and gives NaN where it finds one there.
class WithoutOneDnn {
 public:
  WithoutOneDnn() { at::globalContext().setUserEnabledMkldnn(false); }
  ~WithoutOneDnn() { at::globalContext().setUserEnabledMkldnn(before_); }
  WithoutOneDnn(const WithoutOneDnn&) = delete;
  WithoutOneDnn& operator=(const WithoutOneDnn&) = delete;

 private:
  bool before_ = at::globalContext().userEnabledMkldnn();
};

class Library {
 public:
  // key: CPU or CUDA, whose tensors are to run the emulated kernels.
  Library(const char* name_space, c10::DispatchKey key)
      : name_space_(name_space), library_(torch::Library::IMPL, name_space, key, __FILE__, __LINE__) {}

  template <typename Return, typename... Args>
  void impl(const char* name, Return (*function)(Args...)) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow((name_space_ + "::" + name).c_str(), "");
    library_.impl(name, Op<Return(Args...)>(function, op.schema()));
    names_.emplace_back(name);
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  WithoutOneDnn products_;
  std::string name_space_;
  torch::Library library_;
  std::vector<std::string> names_;
};

struct Registration {
  explicit Registration(void (*add_to)(Library&)) { all().push_back(add_to); }
  static std::vector<void (*)(Library&)>& all();
};

}  // namespace emulator
