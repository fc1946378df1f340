"""Every op against torch eager and torch.compile, forward and forward + backward."""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from benchmarks.harness import CPU, OURS, Case, Setting
from fastllm import ops
from fastllm.optim import AdamW

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
    others: dict[str, Callable] | None = None,
) -> Iterator[Case]:
    """Yield the forward case and the forward + backward case of an op; `forward`/`backward` give bytes or flops."""
    peers = {OURS: ours, "torch": theirs, **(others or {})}
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


def leaf(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


# A coarser dtype beside the setting's own: what its cases' names end in, and how far two results may be apart.
COARSER = {None: ("", 1e-4), torch.bfloat16: (" bfloat16", 0.03)}


def elementwise_and_norms(setting: Setting, compiled: bool) -> Iterator[Case]:
    # On a GPU rows of every length, and more than its caches hold.
    lengths = (768,) if setting.device == "cpu" else (256, 1024, 4096, 16384)
    for c in lengths:
        n = (4096 * 768 if setting.device == "cpu" else 2**26) // c
        size = n * c * setting.dtype.itemsize
        yield from norms(f"{n}x{c}", n, c, size, compiled)
    yield from elementwise(f"{n}x{c}", n, c, size, compiled)


def elementwise(shape: str, n: int, c: int, size: int, compiled: bool) -> Iterator[Case]:
    yield from both_ways(
        "gelu tanh", shape, lambda: (leaf(n, c),),
        lambda x: ops.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "bias_gelu tanh", shape, lambda: (leaf(n, c), leaf(c)),
        lambda x, b: ops.bias_gelu(x, b, "tanh"), lambda x, b: F.gelu(x + b, approximate="tanh"),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "bias_relu p=0.1", shape, lambda: (leaf(n, c), leaf(c)),
        lambda x, b: ops.bias_relu(x, b, 0.1), lambda x, b: F.dropout(F.relu(x + b), 0.1),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size}, tolerance=None,
    )  # fmt: skip
    yield from both_ways(
        "dropout p=0.1", shape, lambda: (leaf(n, c),),
        lambda x: ops.dropout(x, 0.1), lambda x: F.dropout(x, 0.1),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 4 * size}, tolerance=None,
    )  # fmt: skip
    yield from both_ways(
        "swiglu packed", shape, lambda: (leaf(n, 2 * c),),
        ops.swiglu, lambda x: F.silu(x[:, :c]) * x[:, c:],
        compiled=compiled, forward={"bytes": 3 * size}, backward={"bytes": 8 * size},
    )  # fmt: skip
    b, t, h, d = n // 1024, 1024, c // 64, 64
    yield from both_ways(
        "rotary_embedding", f"B{b} T{t} H{h} D{d}", lambda: (leaf(b, t, h, d), *ops.rotary_tables(t, d)),
        lambda x, cos, sin: ops.rotary_embedding(x, cos, sin, layout="bthd"), rotary_of_torch,
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 4 * size},
    )  # fmt: skip


def rotary_of_torch(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (T, 1, D / 2)
    first, second = x.chunk(2, -1)  # of (B, T, H, D)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def add_and_rms_norm(residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.rms_norm(residual, weight.shape, weight), residual


def add_and_norm(residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.layer_norm(residual, weight.shape, weight, bias), residual


def norms(shape: str, n: int, c: int, size: int, compiled: bool) -> Iterator[Case]:
    yield from both_ways(
        "layer_norm", shape, lambda: (leaf(n, c), leaf(c), leaf(c)),
        lambda x, w, b: ops.layer_norm(x, (c,), w, b), lambda x, w, b: F.layer_norm(x, (c,), w, b),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "rms_norm", shape, lambda: (leaf(n, c), leaf(c)),
        lambda x, w: ops.rms_norm(x, (c,), w), lambda x, w: F.rms_norm(x, (c,), w),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "softmax", shape, lambda: (leaf(n, c),),
        lambda x: ops.softmax(x, -1), lambda x: F.softmax(x, -1),
        compiled=compiled, forward={"bytes": 2 * size}, backward={"bytes": 5 * size},
    )  # fmt: skip
    yield from both_ways(
        "dropout_add_layer_norm", f"{shape} p=0.1", lambda: (leaf(n, c), leaf(n, c), leaf(c), leaf(c)),
        lambda x, r, w, b: ops.dropout_add_layer_norm(x, r, w, b, 0.1),
        lambda x, r, w, b: add_and_norm(r + F.dropout(x, 0.1), w, b),
        compiled=compiled, forward={"bytes": 4 * size}, backward={"bytes": 9 * size}, tolerance=None,
    )  # fmt: skip
    yield from both_ways(
        "dropout_add_rms_norm", f"{shape} p=0.1", lambda: (leaf(n, c), leaf(n, c), leaf(c)),
        lambda x, r, w: ops.dropout_add_rms_norm(x, r, w, 0.1),
        lambda x, r, w: add_and_rms_norm(r + F.dropout(x, 0.1), w),
        compiled=compiled, forward={"bytes": 4 * size}, backward={"bytes": 9 * size}, tolerance=None,
    )  # fmt: skip


def attention() -> Iterator[Case]:
    for b, h, t, d, p, dtype in (
        (12, 4, 64, 32, 0.0, None), (12, 6, 256, 64, 0.0, None), (12, 6, 256, 64, 0.2, None),
        (4, 12, 1024, 64, 0.0, None), (12, 6, 256, 64, 0.0, torch.bfloat16), (4, 12, 1024, 64, 0.0, torch.bfloat16),
    ):  # fmt: skip
        flops = 2 * b * h * t * t * d  # two products of 2 T T D each, half of them masked
        suffix, tolerance = COARSER[dtype]

        def make(b=b, h=h, t=t, d=d, dtype=dtype):
            return tuple(leaf(b, t, h, d, dtype=dtype).transpose(1, 2).detach().requires_grad_() for _ in range(3))

        yield from both_ways(
            f"scaled_dot_product_attention causal{suffix}", f"B{b} H{h} T{t} D{d}{f' dropout {p}' if p else ''}", make,
            lambda q, k, v, p=p: ops.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True),
            lambda q, k, v, p=p: F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True),
            compiled=False, forward={"flops": flops}, backward={"flops": flops * 7 // 2},
            tolerance=None if p else tolerance,
        )  # fmt: skip


def decode_case(b: int, h: int, kv_heads: int, t: int, d: int, setting: Setting = CPU) -> Case:
    """Return attention of one new token of each sequence over a full cache of keys and values."""

    def make():
        cache = (b, kv_heads, t, d)
        return torch.randn(b, h, 1, d), torch.randn(cache), torch.randn(cache), torch.full((b,), t)

    heads = f"H{h}" if h == kv_heads else f"H{h} over {kv_heads}"
    return Case("decode_attention", f"B{b} {heads} T{t} D{d}", make, {
        OURS: lambda *inputs: [ops.decode_attention(*inputs)],
        "torch": lambda q, k, v, lengths: [F.scaled_dot_product_attention(q, k, v, enable_gqa=h != kv_heads)],
    }, bytes=2 * setting.dtype.itemsize * b * kv_heads * t * d)  # fmt: skip


def decoding(setting: Setting) -> Iterator[Case]:
    """One sequence and many, GPT-2's heads and groups of 4 and 8, on a GPU; bench_decode has the CPU's."""
    for b, h, kv_heads, t, d in (
        (1, 12, 12, 1024, 64), (64, 12, 12, 1024, 64), (1, 32, 8, 32768, 128), (32, 32, 8, 4096, 128),
        (16, 64, 8, 4096, 128),
    ):  # fmt: skip
        yield decode_case(b, h, kv_heads, t, d, setting)


def losses(setting: Setting, compiled: bool) -> Iterator[Case]:
    c, v, item = 768, 50304, setting.dtype.itemsize
    n, m, batch = (1024, 256, 8) if setting.device == "cpu" else (16384, 8192, 32)  # rows, rows of the fused op

    yield from both_ways(
        "cross_entropy", f"{n}x{v}", lambda: (leaf(n, v), torch.randint(v, (n,))),
        ops.cross_entropy, F.cross_entropy,
        compiled=compiled, forward={"bytes": item * n * v}, backward={"bytes": item * n * v * 3},
    )  # fmt: skip
    yield from both_ways(
        "linear_cross_entropy", f"{m}x{c}x{v}", lambda: (leaf(m, c), leaf(v, c), torch.randint(v, (m,))),
        ops.linear_cross_entropy, lambda x, w, t: F.cross_entropy(F.linear(x, w), t),
        compiled=compiled and setting.device == "cuda",
        forward={"flops": 2 * m * c * v}, backward={"flops": 6 * m * c * v},
        others={"F.linear_cross_entropy": F.linear_cross_entropy} if hasattr(F, "linear_cross_entropy") else {},
    )  # fmt: skip
    yield from both_ways(
        "embedding", f"{batch}x1024 of {v}x{c}", lambda: (torch.randint(v, (batch, 1024)), leaf(v, c), leaf(1024, c)),
        lambda t, w, p: ops.embedding(t, w, position_weight=p),
        lambda t, w, p: F.embedding(t, w) + p, compiled=compiled,
        forward={"bytes": item * batch * 1024 * c * 2}, backward={"bytes": item * c * (batch * 1024 * 3 + v)},
    )  # fmt: skip


def optimizer(setting: Setting) -> Iterator[Case]:
    """One step with clipping over the parameters of a small GPT, in float32 whatever the setting."""
    shapes = [(16384, 512)] + 6 * [(1536, 512), (512, 512), (2048, 512), (512, 2048)]
    count = sum(a * b for a, b in shapes)
    on_gpu = setting.device == "cuda"
    kinds = {
        OURS: lambda p: AdamW(p, max_grad_norm=1.0),
        "torch fused": lambda p: torch.optim.AdamW(p, fused=True, capturable=on_gpu),
        "torch": lambda p: torch.optim.AdamW(p, capturable=on_gpu),
    }

    def make() -> tuple:
        weights = [torch.randn(shape, dtype=torch.float32) for shape in shapes]
        gradients = [torch.randn(shape, dtype=torch.float32) for shape in shapes]
        made = {}
        for name, kind in kinds.items():
            parameters = [w.clone().requires_grad_() for w in weights]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            made[name] = (kind(parameters), parameters)
        return (made,)

    def step(name: str, made: dict) -> list[torch.Tensor]:
        optimizer, parameters = made[name]
        if name != OURS:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return parameters

    peers = {name: functools.partial(step, name) for name in kinds}
    # Gradients are read twice, for the norm and the update; the update reads and writes weights and two moments.
    yield Case("clip + AdamW", f"{count / 1e6:.0f}M parameters", make, peers, bytes=4 * 8 * count)


def products() -> Iterator[Case]:
    for dtype, (suffix, tolerance) in COARSER.items():
        for n, k, m in ((768, 128, 512), (2048, 384, 1536), (1024, 768, 3072)):
            yield from both_ways(
                f"linear{suffix}", f"{n}x{k} to {m}",
                lambda n=n, k=k, m=m, dtype=dtype: tuple(leaf(*shape, dtype=dtype) for shape in ((n, k), (m, k), (m,))),
                ops.linear, F.linear, tolerance=tolerance,
                compiled=False, forward={"flops": 2 * n * k * m}, backward={"flops": 6 * n * k * m},
            )  # fmt: skip
    n, k, m = 256, 768, 50304
    suffix = COARSER[torch.bfloat16][0]
    yield from both_ways(
        f"linear_cross_entropy{suffix}", f"{n}x{k}x{m}",
        lambda: (leaf(n, k, dtype=torch.bfloat16), leaf(m, k, dtype=torch.bfloat16), torch.randint(m, (n,))),
        # Not compared: torch rounds the logits to bfloat16, and gradients are off by up to a quarter of the largest.
        ops.linear_cross_entropy, lambda x, w, t: F.cross_entropy(F.linear(x, w), t), tolerance=None,
        compiled=False, forward={"flops": 2 * n * k * m}, backward={"flops": 6 * n * k * m},
    )  # fmt: skip


def cases(full: bool, setting: Setting = CPU) -> Iterator[Case]:
    """Yield the quick set, or with torch.compile as a peer the full one; on a GPU it always is one."""
    on_gpu = setting.device == "cuda"
    yield from elementwise_and_norms(setting, full or on_gpu)
    yield from losses(setting, full or on_gpu)
    if not on_gpu:  # there attention has cases of its own (bench_attention), and products are cuBLAS's
        yield from attention()
        yield from products()
    else:
        yield from decoding(setting)
    yield from optimizer(setting)
