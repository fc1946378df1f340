// The Python module `planted`: ops with a mistake in how they hand memory to their kernel.
#include "copy.h"

#include <pybind11/stl.h>

#include "bindings.h"
#include "install.h"
#include "ops/cuda.h"
#include "torch_device.h"

namespace {

using at::Tensor;

float* data(const Tensor& tensor) {
  return static_cast<float*>(tensor.data_ptr());
}

const Tensor of_nobody = at::zeros({1 << 20}, at::kFloat);

// Return a copy of input; `state` is written too.
Tensor copy(const Tensor& input, const Tensor& state, c10::string_view mistake) {
  const fastllm::CudaGuard guard(input);
  const auto stream = fastllm::current_stream();
  const int count = static_cast<int>(input.numel());
  Tensor output = at::empty_like(input), temporary = at::zeros_like(input);
  const float* freed = data(temporary);
  const float* from = data(input);
  float* to = data(output);
  int elements = count;
  if (mistake == "reads a freed temporary") {
    temporary.reset();
    from = freed;
  } else if (mistake == "writes its input") {
    to = data(input);
    from = data(temporary);
  } else if (mistake == "reads past its input") {
    ++elements;
  } else if (mistake == "reads what it was not given") {
    from = data(of_nobody);
  }
  const cudaError_t error = mistake == "launches too many threads" ? cudaErrorInvalidConfiguration
                            : mistake == "has no code for the GPU" ? cudaErrorNoKernelImageForDevice
                                                                   : copy_floats(from, to, elements, stream);
  fastllm::check_launch("copy", error);
  fastllm::check_launch("copy", copy_floats(data(temporary.defined() ? temporary : input), data(state), count, stream));
  return output;
}

Tensor call_copy(const Tensor& input, const Tensor& state, c10::string_view mistake) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("emulator_planted::copy", "").typed<decltype(copy)>();
  return op.call(input, state, mistake);
}

struct Copy : torch::autograd::Function<Copy> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& input, const Tensor& state,
                        c10::string_view mistake) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({state});
    return call_copy(input, state, mistake);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad_outputs) {
    const Tensor state = ctx->get_saved_variables()[0];
    return {call_copy(grad_outputs[0].contiguous(), state, "writes its input"), Tensor(), Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(emulator_planted, m) {
  m.def("copy(Tensor input, Tensor(a!) state, str mistake) -> Tensor");
}
TORCH_LIBRARY_IMPL(emulator_planted, Autograd, m) {
  m.impl("copy", fastllm::AutogradKernel<Copy, decltype(copy)>::call);
}
FASTLLM_CUDA_IMPL(m) {
  m.impl("copy", copy);
}

PYBIND11_MODULE(planted, m) {
  emulator::bind_runtime(m);
  emulator::bind_install(m, "emulator_planted");
  emulator::bind_torch_device(m, "emulator_planted");
}
