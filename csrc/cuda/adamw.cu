// AdamW and the norm of gradients, many tensors a launch.
//
// Bytes: the norm reads 4 an element. An update reads 16 (parameter, gradient, both moments) and writes 12:
// memory-bound with about 30 instructions an element, for an H100 at the copy limit. A launch gets its tensors in a
// struct by value (4 KB of kernel parameters hold 64 of them), so nothing is copied to the device before it and it can
// be captured in a graph. Blocks are numbered over all tensors' chunks and find their own by bisection. Four loads of
// 16 bytes a thread and 64 registers: four blocks, 64 KB of loads, share a multiprocessor.
#include "cuda/adamw.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/shared.h"
#include "cuda/vector.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 4;
constexpr int kWidth = kWidest<float>;

// ---------------------------------------------------------------------------------------------------------------------
// Tensors of a launch
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kMaxTensors = 64;

// Which blocks work on which tensor.
struct Blocks {
  int tensors = 0;
  unsigned first[kMaxTensors + 1] = {};  // of each tensor; then the end

  void add(int64_t count, int64_t chunk) {
    first[tensors + 1] = first[tensors] + static_cast<unsigned>((count + chunk - 1) / chunk);
    ++tensors;
  }

  __device__ __forceinline__ int tensor_of(unsigned block) const {
    int low = 0, high = tensors;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

struct GradientList {
  Blocks blocks;
  const float* data[kMaxTensors];
  int64_t count[kMaxTensors];
};

struct StepList {
  int tensors = 0;
  float* step[kMaxTensors];
};

struct TensorList {
  Blocks blocks;
  int64_t count[kMaxTensors];
  float* parameter[kMaxTensors];
  const float* gradient[kMaxTensors];
  float* exp_avg[kMaxTensors];
  float* exp_avg_sq[kMaxTensors];
  const float* step[kMaxTensors];
};

static_assert(sizeof(TensorList) + sizeof(AdamWOptions) <= 4096, "kernel parameters are at most 4 KB");

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

constexpr int64_t kNormChunk = 32 * 1024;  // elements a block
constexpr int64_t kChunk = 4 * 1024;

struct NormShared {
  float partial[kThreads / kWarp];
};

__global__ void __launch_bounds__(kThreads) squares_kernel(GradientList list, float* partial) {
  const int tensor = list.blocks.tensor_of(blockIdx.x);
  const int64_t begin = (blockIdx.x - list.blocks.first[tensor]) * kNormChunk;
  const int count = static_cast<int>(min(kNormChunk, list.count[tensor] - begin));
  const float* gradient = list.data[tensor] + begin;
  const int whole = reinterpret_cast<uintptr_t>(gradient) % 16 == 0 ? count / kWidth * kWidth : 0;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = threadIdx.x * kWidth; i < whole; i += kThreads * kWidth) {
    const Pack<float, kWidth> g = load<float, kWidth>(gradient + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum = fmaf(g.value[k], g.value[k], sum);
  }
  for (int i = whole + threadIdx.x; i < count; i += kThreads) sum = fmaf(gradient[i], gradient[i], sum);
  sum = block_reduce<Sum, kThreads>(sum, shared_memory<NormShared>()->partial);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

struct TotalShared {
  double sum[kThreads];
};

// In double: there may be a million partial sums, and the root of their sum is what the host reads.
__global__ void __launch_bounds__(kThreads) root_kernel(const float* partial, int64_t count, double* norm) {
  double* shared = shared_memory<TotalShared>()->sum;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  shared[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *norm = sqrt(shared[0]);
}

__global__ void __launch_bounds__(kMaxTensors) advance_kernel(StepList list) {
  if (threadIdx.x < list.tensors) *list.step[threadIdx.x] += 1.0f;
}

struct Update {
  float scale, beta1, rest1, beta2, rest2, eps, decay, step_size, inverse2;

  __device__ Update(const AdamWOptions& o, float step)
      : beta1(o.beta1), rest1(o.rest1), beta2(o.beta2), rest2(o.rest2), eps(o.eps) {
    const float learning_rate = o.learning_rate_tensor ? *o.learning_rate_tensor : o.learning_rate;
    decay = 1.0f - learning_rate * o.weight_decay;
    // 1 - beta^step: in the first steps of beta = 0.999 the difference itself would lose four digits.
    step_size = learning_rate / -expm1f(step * o.log_beta1);
    inverse2 = 1.0f / sqrtf(-expm1f(step * o.log_beta2));
    scale = 1.0f;
    if (o.grad_norm) {
      const float norm = static_cast<float>(*o.grad_norm) + 1e-6f;
      scale = norm <= o.max_norm ? 1.0f : o.max_norm / norm;  // a NaN reaches the parameters, as with clip_grad_norm_
    }
    if (o.maximize) scale = -scale;
  }

  __device__ __forceinline__ void operator()(float& parameter, float gradient, float& exp_avg,
                                             float& exp_avg_sq) const {
    const float g = gradient * scale;
    exp_avg = fmaf(exp_avg, beta1, g * rest1);
    exp_avg_sq = fmaf(exp_avg_sq, beta2, g * g * rest2);
    parameter = parameter * decay - step_size * exp_avg / (sqrtf(exp_avg_sq) * inverse2 + eps);
  }
};

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) update_kernel(TensorList list, AdamWOptions options) {
  const int tensor = list.blocks.tensor_of(blockIdx.x);
  const int64_t begin = (blockIdx.x - list.blocks.first[tensor]) * kChunk;
  const int count = static_cast<int>(min(kChunk, list.count[tensor] - begin));
  float* parameter = list.parameter[tensor] + begin;
  const float* gradient = list.gradient[tensor] + begin;
  float* exp_avg = list.exp_avg[tensor] + begin;
  float* exp_avg_sq = list.exp_avg_sq[tensor] + begin;
  const Update update(options, *list.step[tensor]);
  const auto bits = reinterpret_cast<uintptr_t>(parameter) | reinterpret_cast<uintptr_t>(gradient) |
                    reinterpret_cast<uintptr_t>(exp_avg) | reinterpret_cast<uintptr_t>(exp_avg_sq);
  const int whole = bits % 16 == 0 ? count / kWidth * kWidth : 0;
#pragma unroll 1  // four loads are enough under way; more would spill
  for (int i = threadIdx.x * kWidth; i < whole; i += kThreads * kWidth) {
    Pack<float, kWidth> p = load_once<float, kWidth>(parameter + i), m = load_once<float, kWidth>(exp_avg + i);
    Pack<float, kWidth> v = load_once<float, kWidth>(exp_avg_sq + i);
    const Pack<float, kWidth> g = load_once<float, kWidth>(gradient + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) update(p.value[k], g.value[k], m.value[k], v.value[k]);
    store<float, kWidth>(parameter + i, p);  // which the next forward reads
    store_once<float, kWidth>(exp_avg + i, m);
    store_once<float, kWidth>(exp_avg_sq + i, v);
  }
  for (int i = whole + threadIdx.x; i < count; i += kThreads) {
    update(parameter[i], gradient[i], exp_avg[i], exp_avg_sq[i]);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers
// ---------------------------------------------------------------------------------------------------------------------

// Calls body(first, last) for at most kMaxTensors neighbours at a time.
template <typename Body>
cudaError_t for_each_launch(size_t tensors, Body&& body) {
  for (size_t first = 0; first < tensors; first += kMaxTensors) {
    const cudaError_t error = body(first, std::min<size_t>(tensors, first + kMaxTensors));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int64_t grad_norm_partials(const std::vector<Gradient>& gradients) {
  int64_t partials = 0;
  for (const Gradient& g : gradients) partials += (g.count + kNormChunk - 1) / kNormChunk;
  return partials;
}

cudaError_t grad_norm(const std::vector<Gradient>& gradients, float* partial, double* norm, cudaStream_t stream) {
  int64_t done = 0;
  const cudaError_t error = for_each_launch(gradients.size(), [&](size_t first, size_t last) {
    GradientList list{};
    for (size_t i = first; i < last; ++i) {
      list.data[i - first] = gradients[i].data;
      list.count[i - first] = gradients[i].count;
      list.blocks.add(gradients[i].count, kNormChunk);
    }
    const unsigned blocks = list.blocks.first[list.blocks.tensors];
    if (blocks == 0) return cudaSuccess;
    float* own = partial + done;
    done += blocks;
    return launch<squares_kernel>({blocks, kThreads, sizeof(NormShared)}, stream, list, own);
  });
  if (error != cudaSuccess) return error;
  return launch<root_kernel>({1, kThreads, sizeof(TotalShared)}, stream, static_cast<const float*>(partial), done,
                             norm);
}

cudaError_t adamw(const std::vector<AdamWTensor>& tensors, const AdamWOptions& options, cudaStream_t stream) {
  return for_each_launch(tensors.size(), [&](size_t first, size_t last) {
    StepList steps{};
    TensorList list{};
    for (size_t i = first; i < last; ++i) {
      const AdamWTensor& t = tensors[i];
      const size_t to = i - first;
      steps.step[to] = t.step;
      list.count[to] = t.count;
      list.parameter[to] = t.parameter;
      list.gradient[to] = t.gradient;
      list.exp_avg[to] = t.exp_avg;
      list.exp_avg_sq[to] = t.exp_avg_sq;
      list.step[to] = t.step;
      list.blocks.add(t.count, kChunk);
    }
    steps.tensors = list.blocks.tensors;
    const cudaError_t error = launch<advance_kernel>({1, kMaxTensors}, stream, steps);
    const unsigned blocks = list.blocks.first[list.blocks.tensors];
    if (error != cudaSuccess || blocks == 0) return error;
    return launch<update_kernel>({blocks, kThreads}, stream, list, options);
  });
}

}  // namespace fastllm::cuda
