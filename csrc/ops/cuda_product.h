// A product of narrow matrices added to float32, which cuBLAS does in one go.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>

namespace fastllm {

// sum = beta sum + a b; sum is float32, a and b are float32, bfloat16 or float16. With beta 0 what sum held is not
// read.
inline void add_product(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, int beta) {
  if (a.scalar_type() == at::kFloat) {
    sum.addmm_(a, b, beta);
  } else {
    at::addmm_out(sum, sum, a, b, at::kFloat, beta);
  }
}

}  // namespace fastllm
