"""The estimator's formulas against the model itself and against published figures."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastllm import cli
from fastllm.models import GPTConfig, LlamaConfig, model_class
from fastllm.train import estimate
from fastllm.train.device import autocast
from fastllm.train.parts import checkpoint_activations

GPT2_XL = GPTConfig.preset("gpt2-xl").cost()
SHAPES = [
    GPTConfig(65, 64, 4, 4, 128, bias=False),
    GPTConfig(97, 32, 2, 4, 64, bias=True),
    GPTConfig(11, 16, 1, 1, 24, bias=True),  # an only block, an only head
    LlamaConfig(65, 64, 4, 4, 2, 128, n_hidden=384, tie_embeddings=True),
    LlamaConfig(97, 32, 2, 4, 1, 64, head_dim=24, n_hidden=160, qk_norm=True),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters(shape):
    assert shape.cost().parameters == model_class(shape)(shape).num_parameters()


def test_published_parameters():
    # GPT-2's own counts (Radford et al., 2019, table 2, as their released checkpoints have them).
    sizes = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for name, count in sizes.items():
        assert GPTConfig.preset(name).cost().parameters == count


def test_flops_of_the_matrix_products_are_torchs_count():
    """Torch counts products of a block's sizes; attention's, of which only the causal half is done, by hand."""
    shape = SHAPES[0]
    t, c = shape.context_length, shape.n_embd
    x = torch.randn(t, c, requires_grad=True)
    matrices = [torch.randn(n, c, requires_grad=True) for n in (3 * c, c, 4 * c, 4 * c)]
    head = torch.randn(shape.vocab_size, c, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        total = sum((x @ matrix.T).sum() for matrix in matrices) * shape.n_layer + (x @ head.T).sum()
        total.backward()
    block = 3 * 2 * t * 12 * c * c
    assert counter.get_total_flops() == block + 3 * 2 * t * c * shape.vocab_size
    attention = 3 * 4 * c * t * (t + 1) / 2  # q k^T and p v, 2 C each, forward once and backward twice
    expected = shape.n_layer * (block + attention) + 3 * 2 * t * c * shape.vocab_size
    assert estimate.flops_per_token(shape.cost()) * t == pytest.approx(expected)


def test_flops_are_near_six_times_the_parameters():
    assert estimate.flops_per_token(GPT2_XL) == pytest.approx(6 * GPT2_XL.parameters, rel=0.06)
    again = estimate.computed_flops_per_token(GPT2_XL, activation_checkpointing=True)
    assert 1.3 < again / estimate.flops_per_token(GPT2_XL) < 4 / 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_torch_saves(shape, half, checkpointing):
    """Count the bytes that autograd keeps between forward and backward, each storage once."""
    sequences = 3
    model = model_class(shape)(shape)
    model_bytes = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = {tuple(p.shape) for p in model.parameters()}  # half-precision weights: counted apart
    if checkpointing:
        checkpoint_activations(model)
    tokens = torch.randint(shape.vocab_size, (sequences, shape.context_length))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model_bytes and tuple(tensor.shape) not in copies:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if half:
            with autocast(torch.device("cpu"), "bfloat16"):
                model.loss(tokens, tokens)
        else:
            model.loss(tokens, tokens)
    measured = sum(size for _, size in kept.values())
    expected = estimate.activations(shape.cost(), sequences, half, checkpointing)
    if checkpointing:  # the one block that is computed again is not there yet
        expected -= sequences * shape.context_length * estimate.block_activations(shape.cost().blocks[0], half)
    assert measured == pytest.approx(expected, rel=0.03)


def test_memory_is_shared_out_by_fsdp_and_not_by_ddp():
    ddp = estimate.memory(GPT2_XL, 1, devices=8)
    fsdp = estimate.memory(GPT2_XL, 1, devices=8, fsdp=True)
    count = GPT2_XL.parameters
    assert ddp.weights + ddp.gradients + ddp.optimizer == 16 * count
    assert fsdp.weights + fsdp.gradients + fsdp.optimizer == 2 * count
    assert fsdp.activations == ddp.activations
    assert estimate.memory(GPT2_XL, 1, ema=True).total == estimate.memory(GPT2_XL, 1).total + 4 * count


def test_time_is_the_longer_of_computing_and_sending():
    cost, peak = SHAPES[0].cost(), 1e12
    seconds = estimate.step_seconds(cost, 10, peak, 0.5)
    assert seconds == pytest.approx(estimate.flops_per_token(cost) * 640 / 0.5e12)
    assert estimate.step_seconds(cost, 10, peak, 0.5, devices=2) == pytest.approx(seconds / 2)
    assert estimate.step_seconds(cost, 10, peak, 0.5, communication=7.0) == 7.0
    assert estimate.traffic(cost, 1, fsdp=True) == 0
    assert estimate.traffic(cost, 4, fsdp=False, micro_batches=5) == 4 * cost.parameters * 1.5
    assert estimate.traffic(cost, 4, fsdp=True, micro_batches=5) == 4 * cost.parameters * 3 * 5 * 0.75


def test_a_published_run():
    """PaLM's appendix B, table 3: GPT-3 reached 21.3% on 10,000 V100; ours counts half of its attention's FLOPs."""
    gpt3 = GPTConfig(50257, 2048, 96, 96, 12288).cost()
    assert gpt3.parameters == pytest.approx(175e9, rel=0.01)
    assert estimate.flops_per_token(gpt3) * 300e9 == pytest.approx(3.14e23, rel=0.03)  # Brown et al., 2020, table D.1


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla V100-SXM2-16GB", None),
        ("h200", "H200"),
        ("GB10", None),
    ],
)
def test_gpus_are_known_by_their_words(device_name, name):
    gpu = estimate.find_gpu(device_name)
    if device_name.startswith("Tesla"):
        assert gpu.name == "V100"
    else:
        assert (gpu and gpu.name) == name


def estimated(capsys, *options):
    assert cli.main(["estimate", *options]) == 0
    return capsys.readouterr().out


def test_the_command(capsys, data):
    output = estimated(capsys, f"--data={data}", "--n_embd=64")
    assert "this CPU" in output
    assert f"{GPTConfig(28, 64, 4, 4, 64, bias=False).cost().parameters:,}" in output
    output = estimated(capsys, f"--data={data}", "--n_embd=64", "--vocab_size=64")
    assert f"{GPTConfig(64, 64, 4, 4, 64, bias=False).cost().parameters:,}" in output
    gpus = ["--device=H100", "--gpus=8", "--precision=bfloat16", "--batch_size=512", "--micro_batch_size=8"]
    xl = ["--n_layer=48", "--n_head=25", "--n_embd=1600", "--context_length=1024", "--bias=true"]
    output = estimated(capsys, *xl, *gpus, "--parallel=fsdp")
    assert "8 x H100, bfloat16" in output
    assert "1,557,611,200" in output
    assert "memory per device (fsdp)" in output
    assert "DOES NOT FIT" in estimated(capsys, *xl, *gpus, "--micro_batch_size=64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=H900"], "'device' must be cpu or one of B200, H200"),
        (["--gpus=0"], "'gpus' must be at least 1, got 0"),
        (["--gpus=7"], "'batch_size' must be a multiple of gpus (7), got 12"),
        (["--mfu=1.2"], "'mfu' must be in (0, 1], got 1.2"),
        (["--init=nowhere"], "nowhere does not exist"),
        (["--n_head=3"], "'n_embd' must be a multiple of n_head (3), got 128"),
    ],
)
def test_the_command_refuses(options, message, capsys):
    assert cli.main(["estimate", *options]) == 2
    assert message in capsys.readouterr().err
