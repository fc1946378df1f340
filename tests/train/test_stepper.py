"""One step: micro-batches, precision, activation checkpointing, CUDA's path as far as it runs without CUDA."""

import math

import pytest
import torch

from fastllm import ops
from fastllm.data import Batch
from fastllm.errors import UserError
from fastllm.models import GPT, GPTConfig
from fastllm.optim import AdamW
from fastllm.train import TrainConfig, device, parallel
from fastllm.train.parallel import LossModule, Parallel
from fastllm.train.parts import checkpoint_activations
from fastllm.train.stepper import Stepper
from tests.train.tiny import assert_same_weights, rows, train

CPU = torch.device("cpu")


def stepper(dropout=0.0, checkpointing=False, **settings):
    torch.manual_seed(1)
    model = GPT(GPTConfig(17, 8, 2, 2, 16, dropout=dropout, bias=True))
    if checkpointing:
        checkpoint_activations(model)
    return Stepper(TrainConfig(batch_size=6, **settings), model, LossModule(model), Parallel(), CPU)


@pytest.fixture
def batch():
    torch.manual_seed(2)
    tokens, targets = torch.randint(17, (6, 8)), torch.randint(17, (6, 8))
    targets[0, 1:] = targets[1] = targets[2, :3] = -100  # a row of 1, of 0, of 5 targets that count
    return Batch(tokens, targets, None)


def gradients(stepper, batch, monkeypatch):
    """Return what a step hands to the optimizer, and its loss."""
    found = {}
    monkeypatch.setattr(
        stepper, "_update", lambda: found.update({n: p.grad.clone() for n, p in stepper.model.named_parameters()})
    )
    loss = stepper.step(batch, 1e-3)
    return found, loss


@pytest.mark.parametrize("size", [1, 2, 4, 5])  # 1: a micro-batch without any target; 4, 5: a smaller last one
def test_micro_batches_give_the_whole_batchs_loss_and_gradient(size, batch, monkeypatch):
    whole, loss = gradients(stepper(), batch, monkeypatch)
    parts, sum_of_shares = gradients(stepper(micro_batch_size=size), batch, monkeypatch)
    assert sum_of_shares.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-7)


def test_documents_reach_the_model_in_micro_batches_too(batch, monkeypatch):
    segment_ids = (torch.arange(8) // 3).expand(6, 8)
    apart = batch._replace(segment_ids=segment_ids)
    whole, loss = gradients(stepper(), apart, monkeypatch)
    parts, sum_of_shares = gradients(stepper(micro_batch_size=4), apart, monkeypatch)
    assert sum_of_shares.item() == pytest.approx(loss.item(), rel=1e-6)
    assert loss.item() != gradients(stepper(), batch, monkeypatch)[1].item()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-7)


def test_the_whole_batchs_gradient_is_the_models(batch, monkeypatch):
    ours = stepper()
    found, loss = gradients(ours, batch, monkeypatch)
    expected = ours.model.loss(*batch)
    assert torch.equal(loss, expected.detach())
    expected.backward()
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(found[name], parameter.grad), name


def test_a_batch_without_targets(batch):
    with pytest.raises(UserError, match="no target to learn from"):
        stepper().step(batch._replace(targets=torch.full_like(batch.targets, -100)), 1e-3)


def test_the_norm_is_reported_with_and_without_clipping(batch):
    norms = []
    for clip in (1e-3, 0.0):
        one = stepper(grad_clip=clip)
        one.step(batch, 1e-3)
        norms.append(one.grad_norm)
    assert norms[0] == norms[1] > 1e-3


def test_checkpointed_activations_give_the_same_gradients_bit_for_bit(batch, monkeypatch):
    results = []
    for checkpointing in (False, True):
        one = stepper(dropout=0.3, checkpointing=checkpointing)  # the same masks again in backward, or this fails
        torch.manual_seed(3)
        results.append(gradients(one, batch, monkeypatch)[0])
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_checkpointed_activations_hold_less(batch):
    held = []
    for checkpointing in (False, True):
        one, kept = stepper(checkpointing=checkpointing), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            one.loss(*batch)
        held.append(sum(kept))
    assert held[1] < 0.5 * held[0]


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_is_near_float32_and_not_equal(bias, batch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, 8, 2, 2, 16, bias=bias))
    exact = model.loss(*batch)
    with device.autocast(CPU, "bfloat16"):
        rough = model.loss(*batch)
    assert rough.dtype == torch.float32
    assert exact.item() != rough.item() == pytest.approx(exact.item(), rel=1e-2)
    rough.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        ["--micro_batch_size=3"],
        ["--precision=bfloat16"],
        ["--activation_checkpointing"],
        ["--schedule=wsd", "--grad_clip=0"],
        ["--eval_batches=0"],
    ],
)
def test_a_run_with_it_learns(options, data, tmp_path):
    assert train(data, tmp_path / "run", "--max_steps=30", "--learning_rate=1e-2", "--eval_interval=30", *options) == 0
    losses = [row["val_loss"] for row in rows(tmp_path / "run") if "val_loss" in row]
    assert losses[1] < losses[0] - 0.5


def test_activation_checkpointing_changes_no_bit_of_a_run(data, tmp_path):
    assert train(data, tmp_path / "with", "--max_steps=10", "--activation_checkpointing") == 0
    assert train(data, tmp_path / "without", "--max_steps=10") == 0
    assert_same_weights(tmp_path / "with", tmp_path / "without")


@pytest.mark.slow
def test_compile(data, tmp_path):
    options = ["--max_steps=5", "--dropout=0"]
    for name, extra in (
        ("plain", []),
        ("compiled", ["--compile"]),
        ("both", ["--compile", "--activation_checkpointing"]),
    ):
        assert train(data, tmp_path / name, *options, *extra) == 0
    plain, *others = [
        [row["loss"] for row in rows(tmp_path / n) if "loss" in row] for n in ("plain", "compiled", "both")
    ]
    for other in others:
        assert other == pytest.approx(plain, rel=1e-5)


# --- CUDA, without CUDA -----------------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch):
    """Let torch say that there is an H100, and fastllm that it has every kernel."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(ops, "report", list)
    return monkeypatch


def test_cuda_without_kernels_says_which_are_missing(cuda):
    missing = [{"op": op, "device": "cuda", "kernel": "none", "why": ""} for op in ("linear", "rms_norm")]
    cuda.setattr(ops, "report", lambda: missing)
    with pytest.raises(UserError, match="cannot be cuda: fastllm has no CUDA kernel yet for linear; take --device"):
        device.choose(TrainConfig(device="cuda"))
    assert device.choose(TrainConfig(device="auto")) == CPU


def test_generation_takes_the_device_that_can_serve(cuda):
    assert (
        device.for_generation("sample", "auto", GPT)
        == device.for_generation("sample", "cuda", GPT)
        == torch.device("cuda")
    )
    assert device.for_generation("sample", "cpu", GPT) == CPU
    cuda.setattr(ops, "report", lambda: [{"op": "decode_attention", "device": "cuda", "kernel": "none", "why": ""}])
    assert device.for_generation("sample", "auto", GPT) == CPU
    with pytest.raises(
        UserError, match="sample: 'device' cannot be cuda: fastllm has no CUDA kernel yet for decode_att"
    ):
        device.for_generation("sample", "cuda", GPT)
    with pytest.raises(UserError, match="sample: 'device' must be auto or cpu or cuda, got 'gpu'"):
        device.for_generation("sample", "gpu", GPT)


def test_auto_takes_cuda_and_its_listed_peak(cuda):
    chosen = device.choose(TrainConfig(precision="float16"), local_rank=3)
    assert chosen == torch.device("cuda", 3)
    assert device.peak_flops(chosen, "bfloat16") == 989e12
    assert device.peak_flops(chosen, "float32") == 67e12
    cuda.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA GB99")
    assert device.peak_flops(chosen, "bfloat16") is None


def test_a_gpu_without_bfloat16(cuda):
    cuda.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match="has no bfloat16; take --precision float16"):
        device.choose(TrainConfig(precision="bfloat16"))


def test_float16_with_fsdp_is_refused():
    with pytest.raises(UserError, match="'precision' must be float32 or bfloat16 with fsdp"):
        TrainConfig(precision="float16", parallel="fsdp").check()


def test_torchs_optimizer_steps_as_ours_does(batch):
    """In float16 the step is torch's fused AdamW with clip_grad_norm_ and a scaler; here it runs on the CPU."""
    ours, theirs = stepper(grad_clip=0.1), stepper(grad_clip=0.1)
    options = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in theirs.optimizer.param_groups]
    theirs.optimizer = torch.optim.AdamW(groups, **options)
    for _ in range(3):
        ours.step(batch, 1e-3)
        theirs.step(batch, 1e-3)
    assert isinstance(ours.optimizer, AdamW)
    assert float(theirs.grad_norm) == pytest.approx(float(ours.grad_norm), rel=1e-4)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        # Keys' biases have a gradient of nothing but rounding, which AdamW blows up to its full step.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-5)


def test_the_measured_peak_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    assert 1e8 < device.peak_flops(CPU, "float32") < 1e14
    assert torch.equal(torch.get_rng_state(), before)
    assert math.isfinite(device.peak_flops(CPU, "bfloat16"))
    assert parallel.Parallel().world_size == 1
