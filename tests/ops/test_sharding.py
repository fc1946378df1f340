"""Ops on DTensors, in two processes over gloo: what the op gives for the whole tensors, sharded as its input was."""

import datetime
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fastllm import nn, ops

# name: op, the shapes of its tensors by name, its other arguments, the dimensions of input that stay sharded
CASES = {
    "gelu": (ops.gelu, {"input": (4, 6, 8)}, {}, {0, 1, 2}),
    "gelu, uneven": (ops.gelu, {"input": (3, 5, 7)}, {"approximate": "tanh"}, {0, 1, 2}),
    "bias_gelu": (ops.bias_gelu, {"input": (4, 6, 8), "bias": (8,)}, {}, {0, 1, 2}),
    "bias_gelu, uneven": (ops.bias_gelu, {"input": (3, 7), "bias": (7,)}, {}, {0, 1}),
    "bias_relu": (ops.bias_relu, {"input": (4, 6, 8), "bias": (8,)}, {}, {0, 1, 2}),
    "bias_relu, evaluation": (ops.bias_relu, {"input": (4, 8)}, {"p": 0.5, "training": False}, {0, 1}),
    "swiglu": (ops.swiglu, {"input": (4, 6, 8), "up": (4, 6, 8)}, {}, {0, 1, 2}),
    "swiglu, packed": (ops.swiglu, {"input": (4, 5, 8)}, {}, {0, 1}),
    "softmax": (ops.softmax, {"input": (4, 6, 8)}, {"dim": -2}, {0, 2}),
    "layer_norm": (
        ops.layer_norm, {"input": (4, 6, 8), "weight": (8,), "bias": (8,)}, {"normalized_shape": (8,)}, {0, 1},
    ),
    "layer_norm, uneven": (
        ops.layer_norm, {"input": (3, 5, 2, 4), "weight": (2, 4)}, {"normalized_shape": (2, 4)}, {0, 1},
    ),
    "rms_norm": (ops.rms_norm, {"input": (4, 6, 8), "weight": (8,)}, {"normalized_shape": (8,)}, {0, 1}),
}  # fmt: skip


def check_case(name, mesh, placements):
    from torch.distributed.tensor import Replicate, distribute_tensor

    op, shapes, others, free = CASES[name]
    torch.manual_seed(5)
    whole = {key: torch.randn(shape, requires_grad=True) for key, shape in shapes.items()}
    expected = op(**whole, **others)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, list(whole.values()), grad)

    everywhere = [Replicate()] * mesh.ndim
    given = {
        key: distribute_tensor(value.detach(), mesh, placements if key == "input" else everywhere).requires_grad_()
        for key, value in whole.items()
    }
    output = op(**given, **others)
    stays = [p if p.is_shard() and p.dim in free else Replicate() for p in placements]
    assert list(output.placements) == stays
    grads = torch.autograd.grad(output, list(given.values()), distribute_tensor(grad, mesh, everywhere))
    torch.testing.assert_close(output.full_tensor(), expected)
    for key, mine, wanted in zip(whole, grads, expected_grads, strict=True):
        torch.testing.assert_close(mine.full_tensor(), wanted, msg=lambda m, key=key: f"gradient of {key}: {m}")


def check_all_cases(mesh):
    from torch.distributed.tensor import Replicate, Shard

    for name, (_, shapes, _, _) in CASES.items():
        for placement in (Replicate(), *map(Shard, range(len(shapes["input"])))):
            check_case(name, mesh, [placement])


def check_two_mesh_dimensions(mesh):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    for shape in ((2, 1), (1, 2)):
        for placements in ([Shard(0), Shard(1)], [Replicate(), Shard(2)], [Shard(0), Shard(0)]):
            for name in ("layer_norm", "bias_gelu", "swiglu"):
                check_case(name, init_device_mesh("cpu", shape), placements)


def check_a_partial_sum_is_added_up(mesh):
    from torch.distributed.tensor import DTensor, Partial, Replicate

    x = torch.randn(3, 4)
    dist.broadcast(x, 0)
    output = ops.gelu(DTensor.from_local(x, mesh, [Partial()]))
    assert list(output.placements) == [Replicate()]
    torch.testing.assert_close(output.to_local(), ops.gelu(2 * x))


def check_what_is_refused(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    x, w = (distribute_tensor(torch.randn(4, 8), mesh, [Shard(0)]) for _ in range(2))
    for call, error, message in (
        (lambda: ops.linear(x, w), TypeError, "linear: 'input' must be a plain torch.Tensor, got a DTensor: "),
        (lambda: ops.dropout(x), TypeError, "dropout: 'input' must be a plain torch.Tensor, got a DTensor: "),
        (lambda: ops.layer_norm(x, (8,), torch.ones(8)), TypeError, "'weight' must be a DTensor as 'input' is, got a "),
        (lambda: ops.bias_relu(x, p=0.5), ValueError, "bias_relu: 'p' must be 0 for DTensors, got 0.5: "),
        (lambda: ops.gelu(x, "quick"), ValueError, "gelu: 'approximate' must be 'none' or 'tanh', got 'quick'"),
    ):
        with pytest.raises(error) as raised:
            call()
        assert message in str(raised.value), raised.value


def check_layers_in_a_tensor_parallel_plan(mesh):
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    def build(layers):
        torch.manual_seed(7)
        return torch.nn.Sequential(layers.LayerNorm(8), layers.Linear(8, 16), layers.GELU(), layers.Linear(16, 8))

    theirs, mine = build(torch.nn), build(nn)
    plan = {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
        "2": PrepareModuleInput(input_layouts=Shard(-1), desired_input_layouts=Shard(-1)),
        "3": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    parallelize_module(mine, mesh, plan)
    x = torch.randn(2, 6, 8)
    dist.broadcast(x, 0)
    shard = x.chunk(2, 1)[mesh.get_rank()]
    output = mine(shard)
    torch.testing.assert_close(output.full_tensor(), theirs(x))
    output.full_tensor().square().sum().backward()
    theirs(x).square().sum().backward()
    for own, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad.full_tensor(), other.grad)


def check_second_derivatives(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    x = torch.randn(4, 8, requires_grad=True)
    dist.broadcast(x.data, 0)
    sharded = distribute_tensor(x.detach(), mesh, [Shard(0)]).requires_grad_()
    (grad,) = torch.autograd.grad(ops.gelu(sharded).sum(), sharded, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), sharded)
    (expected,) = torch.autograd.grad(F.gelu(x).sum(), x, create_graph=True)
    torch.testing.assert_close(second.full_tensor(), torch.autograd.grad(expected.square().sum(), x)[0])


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_") and name != "check_case"]


def run_checks(rank, store, failures):
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=wait)
    mesh = init_device_mesh("cpu", (2,))
    for check in CHECKS:
        try:
            check(mesh)
        except Exception:
            failures.put((rank, check.__name__, traceback.format_exc()))
            break
    dist.destroy_process_group()


def test_in_two_processes(tmp_path):
    failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(run_checks, (str(tmp_path / "store"), failures), nprocs=2)
    assert failures.empty(), "\n".join(map(str, failures.get()))
