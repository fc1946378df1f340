"""Which kernel serves which op on which device, and why: what `fastllm info` prints."""

import torch

from fastllm._extension import capability_reason, extension
from fastllm.ops._unserved import UNSERVED_ON_CUDA

_BFLOAT16 = {
    "amx": "linear, linear_cross_entropy and attention multiply it on AMX's tiles; the rest widens it to float32",
}
_WIDENED = "linear uses torch's product, the rest widens it to float32: kernels of its own need a CPU with AMX"


def build_info() -> dict[str, str]:
    """Return the extension's facts: version, CPU capability and why, bfloat16 there, torch, CUDA and why, compiler."""
    return {
        "version": extension.version,
        "cpu_capability": extension.cpu_capability,
        "cpu_capability_reason": capability_reason,
        "bfloat16": _BFLOAT16.get(extension.cpu_capability, _WIDENED),
        "torch_at_build": extension.torch_version,
        "torch": torch.__version__,
        "cuda": "yes" if extension.with_cuda else "no",
        "cuda_reason": extension.cuda_reason,
        "compiler": extension.compiler,
    }


def report() -> list[dict[str, str]]:
    """Return a row an op and device: {"op", "device", "kernel", "why"}; kernel is "none" where nothing serves."""
    schemas = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastllm::")]
    cpu_why = f"{extension.cpu_capability} build: {capability_reason}"
    rows = []
    for schema in sorted(name for name in schemas if not name.endswith("_backward")):
        for device in ("cpu", "cuda"):
            if device == "cpu":
                kernel, why = f"fastllm ({extension.cpu_capability})", cpu_why
            elif schema not in UNSERVED_ON_CUDA:
                kernel, why = "fastllm (cuda)", extension.cuda_reason
            else:
                reason = "this op has no CUDA kernel yet" if extension.with_cuda else extension.cuda_reason
                kernel, why = "none", reason
            rows.append({"op": schema.removeprefix("fastllm::"), "device": device, "kernel": kernel, "why": why})
    return rows
