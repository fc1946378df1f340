"""Every op against torch eager and torch.compile, forward and forward + backward."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.harness import OURS, Case
from fastllm import ops

# B batch, H heads, T tokens, D head_dim, C channels, V vocabulary, N rows


def both_ways(
    name: str,
    shape: str,
    make: Callable[[], tuple],
    ours: Callable,
    theirs: Callable,
    *,
    compiled: bool,
    forward: dict,
    backward: dict,
    tolerance: float | None = 1e-4,
) -> Iterator[Case]:
    """Yield the forward case and the forward + backward case of an op; `forward`/`backward` give bytes or flops."""
    peers = {OURS: ours, "torch": theirs}
    if compiled:
        peers["torch.compile"] = torch.compile(theirs)

    def values(function):
        def call(*inputs):
            with torch.no_grad():
                return tensors(function(*inputs))

        return call

    def gradients(function):
        def call(*inputs):
            outputs = tensors(function(*inputs))
            wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
            # An output serves as its own gradient: no extra work, and unlike ones it is no special case (softmax).
            return torch.autograd.grad(outputs, wanted, [o.detach() for o in outputs])

        return call

    yield Case(name, shape, make, {k: values(f) for k, f in peers.items()}, tolerance=tolerance, **forward)
    yield Case(
        f"{name} fwd+bwd", shape, make, {k: gradients(f) for k, f in peers.items()}, tolerance=tolerance, **backward
    )


def tensors(output) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else list(output)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def elementwise_and_norms(compiled: bool) -> Iterator[Case]:
    n, c = 4096, 768
    size = 4 * n * c
    yield from both_ways(
        "gelu tanh", f"{n}x{c}", lambda: (leaf(n, c),),
        lambda x: ops.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "bias_gelu tanh", f"{n}x{c}", lambda: (leaf(n, c), leaf(c)),
        lambda x, b: ops.bias_gelu(x, b, "tanh"), lambda x, b: F.gelu(x + b, approximate="tanh"),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "layer_norm", f"{n}x{c}", lambda: (leaf(n, c), leaf(c), leaf(c)),
        lambda x, w, b: ops.layer_norm(x, (c,), w, b), lambda x, w, b: F.layer_norm(x, (c,), w, b),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "rms_norm", f"{n}x{c}", lambda: (leaf(n, c), leaf(c)),
        lambda x, w: ops.rms_norm(x, (c,), w), lambda x, w: F.rms_norm(x, (c,), w),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "softmax", f"{n}x1024", lambda: (leaf(n, 1024),),
        lambda x: ops.softmax(x, -1), lambda x: F.softmax(x, -1),
        compiled=compiled, forward={"bytes": 8 * n * 1024}, backward={"bytes": 20 * n * 1024},
    )  # fmt: skip
    yield from both_ways(
        "dropout p=0.1", f"{n}x{c}", lambda: (leaf(n, c),),
        lambda x: ops.dropout(x, 0.1), lambda x: F.dropout(x, 0.1),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 4 * size}, tolerance=None,
    )  # fmt: skip
    yield from both_ways(
        "dropout_add_layer_norm", f"{n}x{c} p=0.1", lambda: (leaf(n, c), leaf(n, c), leaf(c), leaf(c)),
        lambda x, r, w, b: ops.dropout_add_layer_norm(x, r, w, b, 0.1)[0],
        lambda x, r, w, b: F.layer_norm(r + F.dropout(x, 0.1), (c,), w, b),
        compiled=compiled, forward={"bytes": 4 * size}, backward={"bytes": 9 * size}, tolerance=None,
    )  # fmt: skip


def attention(compiled: bool) -> Iterator[Case]:
    for b, h, t, d, p in ((12, 4, 64, 32, 0.0), (12, 6, 256, 64, 0.0), (12, 6, 256, 64, 0.2), (4, 12, 1024, 64, 0.0)):
        flops = 2 * b * h * t * t * d  # two products of 2 T T D each, half of them masked

        def make(b=b, h=h, t=t, d=d):
            return tuple(leaf(b, t, h, d).transpose(1, 2).detach().requires_grad_() for _ in range(3))

        yield from both_ways(
            "scaled_dot_product_attention causal", f"B{b} H{h} T{t} D{d}" + (f" dropout {p}" if p else ""), make,
            lambda q, k, v, p=p: ops.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True),
            lambda q, k, v, p=p: F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True),
            compiled=False, forward={"flops": flops}, backward={"flops": flops * 7 // 2},
            tolerance=None if p else 1e-4,
        )  # fmt: skip


def losses(compiled: bool) -> Iterator[Case]:
    n, c, v = 1024, 768, 50304

    def targets():
        return torch.randint(v, (n,))

    yield from both_ways(
        "cross_entropy", f"{n}x{v}", lambda: (leaf(n, v), targets()),
        ops.cross_entropy, F.cross_entropy,
        compiled=compiled, forward={"bytes": 4 * n * v}, backward={"bytes": 4 * n * v * 3},
    )  # fmt: skip
    yield from both_ways(
        "linear_cross_entropy", f"256x{c}x{v}", lambda: (leaf(256, c), leaf(v, c), torch.randint(v, (256,))),
        ops.linear_cross_entropy, lambda x, w, t: F.cross_entropy(F.linear(x, w), t),
        compiled=False, forward={"flops": 2 * 256 * c * v}, backward={"flops": 6 * 256 * c * v},
    )  # fmt: skip
    yield from both_ways(
        "embedding", f"8x1024 of {v}x{c}", lambda: (torch.randint(v, (8, 1024)), leaf(v, c), leaf(1024, c)),
        lambda t, w, p: ops.embedding(t, w, position_weight=p),
        lambda t, w, p: F.embedding(t, w) + p,
        compiled=compiled, forward={"bytes": 4 * 8 * 1024 * c * 2}, backward={"bytes": 4 * c * (8 * 1024 * 3 + v)},
    )  # fmt: skip


def products(compiled: bool) -> Iterator[Case]:
    for n, k, m in ((768, 128, 512), (2048, 384, 1536), (1024, 768, 3072)):
        yield from both_ways(
            "linear", f"{n}x{k} to {m}", lambda n=n, k=k, m=m: (leaf(n, k), leaf(m, k), leaf(m)),
            ops.linear, F.linear,
            compiled=False, forward={"flops": 2 * n * k * m}, backward={"flops": 6 * n * k * m},
        )  # fmt: skip


def cases(full: bool) -> Iterator[Case]:
    """Yield the quick set, or with torch.compile and every shape the full one."""
    for family in (elementwise_and_norms, attention, losses, products):
        yield from family(full)
