// The dtypes that CUDA kernels take, named without torch.
#pragma once

namespace fastllm::cuda {

enum class DType { kFloat32, kBFloat16, kFloat16 };

}  // namespace fastllm::cuda
