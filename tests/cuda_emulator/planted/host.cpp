// An op with a mistake in what it does on the host: which device and stream it takes, what it waits for, what it keeps.
#include <ATen/ops/full.h>
#include <ATen/ops/nonzero.h>

#include "copy.h"
#include "ops/cuda.h"

namespace {

using at::Tensor;

const float* data(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Returns what `state` has to say where the op should have left it on the device.
int64_t told_to_the_host(const Tensor& state, c10::string_view mistake) {
  if (mistake == "reads its state on the host")
    return static_cast<int64_t>(*static_cast<const volatile float*>(data(state)));
  if (mistake == "waits for a value") return static_cast<int64_t>(state[0].item<float>());
  if (mistake == "waits for a shape") return at::nonzero(state).numel();
  return 0;
}

void do_on_the_device(const Tensor& state, c10::string_view mistake, cudaStream_t stream) {
  if (mistake == "copies from the host") at::full({1}, 1.0f, at::kFloat).to(state.device());
  if (mistake == "sets memory on the null stream") {
    cudaMemsetAsync(state.mutable_data_ptr(), 0, state.nbytes(), nullptr);
  }
  if (mistake == "sets memory") cudaMemsetAsync(state.mutable_data_ptr(), 0, state.nbytes(), stream);
  if (mistake == "asks the first device") {
    int processors = 0;
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0);
  }
}

// Return a copy of input.
Tensor misplace(const Tensor& input, const Tensor& state, c10::string_view mistake) {
  const auto stream_of_caller = fastllm::current_stream();
  std::optional<fastllm::CudaGuard> guard;
  if (mistake == "leaves its device current") {
    c10::impl::VirtualGuardImpl(c10::kCUDA).setDevice(input.device());
  } else if (mistake != "has no guard") {
    guard.emplace(input);
  }
  Tensor output = at::empty_like(input);
  const auto stream = mistake == "launches on the null stream"      ? nullptr
                      : mistake == "takes the stream of its caller" ? stream_of_caller
                                                                    : fastllm::current_stream();
  do_on_the_device(state, mistake, stream);
  const auto count = static_cast<int>(input.numel() + told_to_the_host(state, mistake) * 0);
  const auto error = copy_floats(data(input), static_cast<float*>(output.mutable_data_ptr()), count, stream);
  if (mistake == "leaves its error behind") TORCH_CHECK(error == cudaSuccess, "misplace: it did not work");
  if (mistake != "says nothing of its error") fastllm::check_launch("misplace", error);
  return output;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(emulator_planted, m) {
  m.def("misplace(Tensor input, Tensor(a!) state, str mistake) -> Tensor");
}
FASTLLM_CUDA_IMPL(m) {
  m.impl("misplace", misplace);
}
