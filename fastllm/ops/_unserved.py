"""Ops that have no CUDA kernel in this build say so, and what to do, instead of torch's error about backends."""

import torch

from fastllm._extension import extension

_WHAT_TO_DO = (
    "this op has no CUDA kernel yet: use its torch.nn.functional counterpart there, or move the tensors to the CPU"
    if extension.with_cuda
    else f"this build has no CUDA kernels ({extension.cuda_reason}): install fastllm again with pip's "
    "--no-build-isolation --force-reinstall --no-deps where torch is a CUDA build and nvcc is on PATH, or move the "
    "tensors to the CPU"
)


def _refuse(name: str):
    def kernel(*args, **kwargs):
        raise NotImplementedError(f"fastllm.{name}: got CUDA tensors, but {_WHAT_TO_DO}")

    return kernel


def _register() -> tuple[torch.library.Library, frozenset[str]]:
    """Give each op without a CUDA kernel one that refuses; return what keeps them alive, and the ops' names."""
    library = torch.library.Library("fastllm", "IMPL")
    schemas = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastllm::")]
    unserved = [name for name in schemas if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
    for schema in unserved:
        library.impl(schema, _refuse(schema.removeprefix("fastllm::")), "CUDA")
    return library, frozenset(unserved)


_library, UNSERVED_ON_CUDA = _register()
