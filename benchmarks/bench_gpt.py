"""A whole training step: forward, backward, gradient clipping and AdamW."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.harness import CPU, OURS, Case, Setting
from benchmarks.torch_gpt import TorchGPT
from fastllm.models import GPT, GPTConfig
from fastllm.optim import AdamW

LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0


def fastllm_step(model, setting: Setting):
    optimizer = AdamW(model.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP)

    def step(tokens, targets):
        with setting.autocast():
            loss = model.loss(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return [loss.detach()]

    return step


def torch_step(loss_of, parameters, setting: Setting):
    parameters = list(parameters)
    for_gpu = {"fused": True, "capturable": True} if setting.device == "cuda" else {}
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, **for_gpu)

    def step(tokens, targets):
        with setting.autocast():
            loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return [loss.detach()]

    return step


def nanogpt_step(folder: Path, config: GPTConfig, setting: Setting):
    """Return a step of nanoGPT's own model from a user's clone."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").exists():
        raise FileNotFoundError(f"--nanogpt: expected a clone of nanoGPT with model.py in it, got {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    model = module.GPT(
        module.GPTConfig(
            block_size=config.context_length, vocab_size=config.vocab_size, n_layer=config.n_layer,
            n_head=config.n_head, n_embd=config.n_embd, dropout=config.dropout, bias=config.bias,
        )
    ).to(setting.device)  # fmt: skip
    return torch_step(lambda tokens, targets: model(tokens, targets)[1], model.parameters(), setting)


def step_case(
    name: str, shape: str, config: GPTConfig, batch: int, compiled: bool, nanogpt: Path | None, setting: Setting = CPU
) -> Case:
    torch.manual_seed(0)
    ours = GPT(config).to(setting.device)
    theirs = TorchGPT(config).copy_from(ours).to(setting.device)
    peers = {OURS: fastllm_step(ours, setting), "torch": torch_step(theirs.loss, theirs.parameters(), setting)}
    skipped = {}
    if compiled:
        twin = TorchGPT(config).copy_from(ours).to(setting.device)
        peers["torch.compile"] = torch_step(torch.compile(twin.loss), twin.parameters(), setting)
    if nanogpt:
        peers["nanoGPT"] = nanogpt_step(nanogpt, config, setting)
    else:
        skipped["nanoGPT"] = "no clone was named by --nanogpt DIR"
    for step in [p for n, p in peers.items() if n != "nanoGPT"]:
        _same_first_loss(step, config, batch, peers[OURS] if step is not peers[OURS] else None, setting)

    def make():
        shape = (batch, config.context_length)
        return torch.randint(config.vocab_size, shape), torch.randint(config.vocab_size, shape)

    return Case(name, shape, make, peers, flops=6 * ours.num_parameters() * batch * config.context_length,
                tolerance=None, skipped=skipped)  # fmt: skip


def _same_first_loss(step, config, batch, ours, setting: Setting) -> None:
    """Train ours and a peer one step from the same weights on the same batch: their losses must agree.

    Dropout draws its own masks in each, so models with dropout are only compared without it in the tests.
    """
    if config.dropout or ours is None:
        return
    torch.manual_seed(1)
    tokens = torch.randint(config.vocab_size, (batch, config.context_length)).to(setting.device)
    if not hasattr(ours, "first_loss"):
        ours.first_loss = ours(tokens, tokens)[0].item()
    theirs = step(tokens, tokens)[0].item()
    if abs(ours.first_loss - theirs) > max(1e-4, setting.resolution):
        raise AssertionError(f"training step: fastllm's loss is {ours.first_loss}, the peer's {theirs}")


def cases(full: bool, nanogpt: Path | None, setting: Setting = CPU) -> Iterator[Case]:
    """Yield the training steps: nanoGPT's CPU settings, and in full its baby GPT too; on a GPU, GPT-2's."""
    if setting.device == "cuda":
        gpt2 = GPTConfig.preset("gpt2", vocab_size=50304)  # rounded up to what tensor cores like, as nanoGPT does
        yield step_case("training step", "L12 H12 C768 T1024 B8", gpt2, 8, True, nanogpt, setting)
        return
    config = GPTConfig.preset("shakespeare")
    yield step_case("training step", "L4 H4 C128 T64 B12", config, 12, full, nanogpt)
    if full:
        baby = GPTConfig(65, 256, 6, 6, 384, dropout=0.2, bias=False)
        yield step_case("training step", "L6 H6 C384 T256 B8 dropout 0.2", baby, 8, False, nanogpt)
