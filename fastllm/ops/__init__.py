"""The functional API: hand-written kernels as torch custom ops, torch.ops.fastllm.*.

Signatures follow torch.nn.functional name for name where it has the function; extras are keyword-only. Every op works
under autograd, torch.compile(fullgraph=True), torch.export and autocast, and gives the same bits on every run and for
any number of threads.
"""

from fastllm import _extension  # noqa: F401  (registers torch.ops.fastllm.* before the fakes below)
from fastllm.ops._report import build_info, report
from fastllm.ops.cross_entropy import cross_entropy, linear_cross_entropy
from fastllm.ops.gelu import bias_gelu, gelu
from fastllm.ops.linear import linear

__all__ = ["bias_gelu", "build_info", "cross_entropy", "gelu", "linear", "linear_cross_entropy", "report"]
