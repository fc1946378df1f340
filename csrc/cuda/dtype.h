// The dtypes that CUDA kernels take, named without torch. Op files include this too: nothing of nvcc's in here.
#pragma once

#include <cuda_runtime_api.h>

namespace fastllm::cuda {

enum class DType { kFloat32, kBFloat16, kFloat16 };

}  // namespace fastllm::cuda
