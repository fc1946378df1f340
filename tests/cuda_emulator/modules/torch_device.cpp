#include "ops/op.h"

#include "torch_device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "device_memory.h"
#include "emulator/library.h"
#include "fault.h"
#include "install.h"

namespace py = pybind11;

namespace emulator {

namespace {

using at::Tensor;
using torch::jit::Stack;

constexpr auto kCUDA = c10::DeviceType::CUDA;

// ---------------------------------------------------------------------------------------------------------------------
// Devices and streams, as c10 asks for them
// ---------------------------------------------------------------------------------------------------------------------

struct GuardImpl final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kCUDA; }
  c10::Device getDevice() const override { return {kCUDA, static_cast<c10::DeviceIndex>(current_device())}; }
  void setDevice(c10::Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { set_current_device(device.index()); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    if (device.has_index()) setDevice(device);
    return before;
  }
  c10::Stream getStream(c10::Device device) const override {
    const c10::Device its = device.has_index() ? device : getDevice();
    return c10::Stream(c10::Stream::UNSAFE, its, current_stream_number(its.index()));
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = exchange_stream_number(stream.device_index(), stream.id());
    return c10::Stream(c10::Stream::UNSAFE, stream.device(), before);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  // All work is done in the order in which it is asked for, so that no stream is ever behind another.
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryEvent(void*) const override { return true; }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

// What torch asks of a build with CUDA. It keeps one object for the life of the process, which none can replace; but
// the object holds no data, so that another class can take its place.
struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
};
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));

template <typename Class>
void become() {
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Class;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------------------

// Allocates on the current device.
struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const int device = current_device();
    void* const data = device_memory().allocate(device, bytes);
    note_allocation(reinterpret_cast<uintptr_t>(data), bytes, device);
    return {data, data, &release, {kCUDA, static_cast<c10::DeviceIndex>(device)}};
  }
  void copy_data(void*, const void*, size_t) const override { throw Fault("the host copies memory of a device"); }

  static void release(void* pointer) {
    if (!pointer) return;
    note_release(reinterpret_cast<uintptr_t>(pointer));
    device_memory().free(pointer);
  }
};

DeviceAllocator allocator;
const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return Tensor(at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format));
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return Tensor(at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype)));
}

// The same memory, as a CPU tensor that owns none of it.
Tensor as_cpu(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

Tensor empty_as(const Tensor& tensor, c10::Device device) {
  return empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, device, {});
}

// ---------------------------------------------------------------------------------------------------------------------
// torch's operators
// ---------------------------------------------------------------------------------------------------------------------

// An EmulatorError of what `body` finds wrong.
template <typename Body>
auto reporting(Body&& body) {
  try {
    return body();
  } catch (const Fault&) {
    rethrow_fault();
  }
}

template <typename Change>
c10::IValue with_tensors(const c10::IValue& value, Change&& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> out;
    for (const Tensor& each : value.toTensorVector()) out.push_back(change(each));
    return out;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> out;
    for (const std::optional<Tensor>& each : value.toOptionalTensorList()) {
      out.push_back(each ? std::optional<Tensor>(change(*each)) : std::nullopt);
    }
    return out;
  }
  return value;
}

template <typename Change>
Stack with_tensors(const Stack& values, Change&& change) {
  Stack out;
  for (const auto& value : values) out.push_back(with_tensors(value, change));
  return out;
}

// The device of the tensors, which must be one; scalars on the CPU are constants.
c10::Device device_of(const std::string& name, const Stack& arguments) {
  std::optional<c10::Device> device;
  with_tensors(arguments, [&](const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) TORCH_CHECK(tensor.dim() == 0, name, ": a tensor of the CPU among those of cuda");
    if (tensor.is_cuda()) TORCH_CHECK(!device || *device == tensor.device(), name, ": tensors of two devices");
    if (tensor.is_cuda()) device = tensor.device();
    return tensor;
  });
  TORCH_CHECK(device, name, ": the emulator has no such operator for CUDA");
  return *device;
}

// Runs the CPU's kernel, whatever of torch's layers is active.
Stack run_on_cpu(const c10::OperatorHandle& op, Stack stack) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const DeviceMemory::Access access;
  op.callBoxed(&stack);
  return stack;
}

// For each result, the argument whose memory it is by the schema; none if the operator makes them.
std::optional<std::vector<size_t>> arguments_returned(const c10::FunctionSchema& schema) {
  std::vector<size_t> found;
  for (const auto& result : schema.returns()) {
    if (!result.alias_info()) return std::nullopt;
    for (size_t i = 0; i < schema.arguments().size(); ++i) {
      const auto* alias = schema.arguments()[i].alias_info();
      if (alias && *alias == *result.alias_info()) found.push_back(i);
    }
  }
  return found;
}

// What the operator would return for such tensors: their sizes, strides and dtypes.
Stack meta_results(const c10::OperatorHandle& op, const Stack& arguments) {
  const at::AutoDispatchBelowADInplaceOrView below;
  Stack meta =
      with_tensors(arguments, [](const Tensor& t) { return t.defined() && t.is_cuda() ? t.to(at::kMeta) : t; });
  op.callBoxed(&meta);
  return meta;
}

// An operator that is given an empty `out` makes it as large as it must be.
void resize_outputs(const c10::OperatorHandle& op, const Stack& arguments, const std::vector<size_t>& returned) {
  const auto is_empty = [&](size_t i) {
    return op.schema().arguments()[i].is_out() && arguments[i].toTensor().numel() == 0;
  };
  if (std::none_of(returned.begin(), returned.end(), is_empty)) return;
  const Stack meta = meta_results(op, arguments);
  for (size_t i = 0; i < returned.size(); ++i) {
    if (!is_empty(returned[i])) continue;
    const Tensor out = arguments[returned[i]].toTensor(), sized = empty_as(meta[i].toTensor(), out.device());
    out.unsafeGetTensorImpl()->set_storage_keep_dtype(sized.storage());
    out.unsafeGetTensorImpl()->set_sizes_and_strides(sized.sizes(), sized.strides());
  }
}

// Any operator that has no kernel of its own here: the CPU's, on the same memory, now or in a graph.
void run_operator(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  reporting([&] {
    const auto& schema = op.schema();
    const size_t count = schema.arguments().size();
    const Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
    const c10::Device device = device_of(schema.name(), arguments);
    if (op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape))
      host_waits(schema.name());
    torch::jit::drop(*stack, count);
    const auto returned = arguments_returned(schema);
    if (returned && schema.is_mutable()) {
      resize_outputs(op, arguments, *returned);
      submit([op, cpu = with_tensors(arguments, as_cpu)] { run_on_cpu(op, cpu); });
      for (const size_t i : *returned) stack->push_back(arguments[i]);
      return;
    }
    TORCH_CHECK(!schema.is_mutable() && !returned, schema.name(),
                ": the emulator does not know whose memory it returns");
    Stack results;
    if (Graph::capturing()) {
      results = with_tensors(meta_results(op, arguments), [&](const Tensor& t) { return empty_as(t, device); });
      submit([op, cpu = with_tensors(arguments, as_cpu), to = with_tensors(results, as_cpu)] {
        const Stack made = run_on_cpu(op, cpu);
        const DeviceMemory::Access access;
        for (size_t i = 0; i < made.size(); ++i) {
          if (made[i].isTensor()) to[i].toTensor().copy_(made[i].toTensor());
        }
      });
    } else {
      const Stack made = run_on_cpu(op, with_tensors(arguments, as_cpu));
      const DeviceMemory::Access access;
      results = with_tensors(made, [&](const Tensor& t) {
        Tensor to = empty_as(t, device);
        as_cpu(to).copy_(t);
        return to;
      });
    }
    for (auto& result : results) stack->push_back(std::move(result));
  });
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  reporting([&] {
    const bool from_host = !source.is_cuda() && source.numel() > 0, to_host = !self.is_cuda();
    if (from_host || to_host) host_waits(to_host ? "a copy to the CPU" : "a copy from the CPU");
    submit([to = as_cpu(self), from = as_cpu(source)]() mutable {
      const at::AutoDispatchBelowADInplaceOrView below;
      const DeviceMemory::Access access;
      to.copy_(from);
    });
  });
  return self;
}

Tensor as_strided(const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

// ---------------------------------------------------------------------------------------------------------------------
// Python
// ---------------------------------------------------------------------------------------------------------------------

struct Registrations {
  torch::Library anything{torch::Library::IMPL, "_", c10::DispatchKey::CUDA, __FILE__, __LINE__};
  torch::Library aten{torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__};
  Library ops;

  explicit Registrations(const char* name_space)
      : ops(name_space, c10::DispatchKey::CUDA), guard_before(guard_of_cuda().exchange(&guard)) {
    anything.fallback(torch::CppFunction::makeFromBoxedFunction<&run_operator>());
    aten.impl("empty.memory_format", empty);
    aten.impl("empty_strided", empty_strided);
    aten.impl("copy_", copy_);
    aten.impl("as_strided", as_strided);
    aten.impl("view", static_cast<Tensor (*)(const Tensor&, at::IntArrayRef)>(at::native::view));
    aten.impl("_reshape_alias", at::native::_reshape_alias);
    for (auto* add_to : Registration::all()) add_to(ops);
    become<Hooks>();
  }
  ~Registrations() {
    become<at::CUDAHooksInterface>();
    guard_of_cuda().store(guard_before);
  }

 private:
  // null, or what fake tensors had torch put there
  static std::atomic<const c10::impl::DeviceGuardImplInterface*>& guard_of_cuda() {
    return c10::impl::device_guard_impl_registry[static_cast<size_t>(kCUDA)];
  }

  GuardImpl guard;
  const c10::impl::DeviceGuardImplInterface* guard_before;
};

std::unique_ptr<Registrations> registered;

std::vector<std::string> connect(const char* name_space) {
  if (!registered) {
    without_warnings([&] { registered = std::make_unique<Registrations>(name_space); });
    device_memory().watch(true);
  }
  return registered->ops.names();
}

void disconnect() {
  if (!registered) return;
  registered.reset();
  device_memory().watch(false);
  set_current_device(0);
  for (int device = 0; device < kDevices; ++device) exchange_stream_number(device, 0);
  forbid_waiting(false);
  fail_launch(0, cudaSuccess);
}

cudaError_t error_named(const std::string& name) {
  for (const cudaError_t error : {cudaErrorInvalidConfiguration, cudaErrorNoKernelImageForDevice}) {
    if (name == cudaGetErrorName(error)) return error;
  }
  throw std::invalid_argument("no such error: " + name);
}

}  // namespace

void bind_torch_device(py::module_& m, const char* name_space) {
  m.def(
      "connect", [name_space] { return connect(name_space); },
      "Give torch the emulated CUDA devices; return the names of the ops that run there.");
  m.def("disconnect", &disconnect, "Take the devices away from torch.");
  m.attr("device_count") = kDevices;
  m.def("set_device", &set_current_device);
  m.def("current_device", &current_device);
  m.def("exchange_stream", &exchange_stream_number, "Make a stream, by its number, a device's current one.");
  m.def(
      "attribute",
      [](int which) {
        int value = 0;
        const auto error = cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(which), current_device());
        return std::make_pair(std::string(cudaGetErrorName(error)), value);
      },
      "Return what cudaDeviceGetAttribute says of the current device.");
  m.def("forbid_waiting", &forbid_waiting, "Have an operator for which the host must wait fail.");
  m.def("launches", &launches, "Return how many launches there were.");
  m.def(
      "fail_launch", [](uint64_t countdown, const std::string& error) { fail_launch(countdown, error_named(error)); },
      "Have the launch that is the countdown-th from now (1: the next) return an error.");
  m.def("failed_op", &failed_op, "Return the op whose launch failed so.");
  m.def("last_error", [] { return std::string(cudaGetErrorName(cudaPeekAtLastError())); });
  py::class_<Graph>(m, "Graph", py::module_local(),
                    "What was asked of the devices from begin() to end(), to be done by each replay().")
      .def(py::init<>())
      .def("begin", &Graph::begin)
      .def("end",
           [](Graph& graph) {
             graph.end();
             device_memory().check_untouched("while a graph was captured");
           })
      .def("replay", &Graph::replay)
      .def("__len__", &Graph::size);
}

}  // namespace emulator
