// The pybind11 module: importing it registers the ops (their static TORCH_LIBRARY blocks run on load) and tells how it
// was built. One module per CPU capability; fastllm/_extension.py picks.
#include <pybind11/pybind11.h>

#include "build_facts.h"  // written by setup.py

#define FASTLLM_STRING(token) FASTLLM_STRING_OF(token)
#define FASTLLM_STRING_OF(token) #token

PYBIND11_MODULE(FASTLLM_MODULE, m) {
  m.doc() = "fastllm's compiled ops: importing this module registers them with torch as torch.ops.fastllm.*";
  m.attr("version") = FASTLLM_VERSION;
  m.attr("cpu_capability") = FASTLLM_STRING(FASTLLM_CAPABILITY);
  m.attr("torch_version") = FASTLLM_TORCH_VERSION;
#ifdef FASTLLM_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  m.attr("cuda_reason") = FASTLLM_CUDA_REASON;
  m.attr("compiler") = __VERSION__;
}
