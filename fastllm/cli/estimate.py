"""fastllm estimate: what a run will cost, before it starts."""

import math
from argparse import SUPPRESS
from collections.abc import Collection
from pathlib import Path

from jsonargparse import Namespace

from fastllm.cli.options import add_train_config, config_of
from fastllm.cli.parser import Parser
from fastllm.errors import UserError
from fastllm.memory import total_memory
from fastllm.models.config import Cost, ModelConfig
from fastllm.train import estimate
from fastllm.train.config import TrainConfig

_NOT_TRAINS = ("device", "out")  # but a run's own config.yaml has them
_DEFAULT_VOCABULARY = 50257  # GPT-2's
_MFU = {"cpu": 0.6, "gpu": 0.4}  # a CPU's kernels come near its measured products; published GPU runs lie at 30 to 60%


def add_to(commands) -> None:
    """Add the command's parser."""
    names = ", ".join(gpu.name for gpu in estimate.GPUS)
    parser = Parser(
        description="Parameters, FLOPs, memory and time of a run, before it starts; it takes train's settings. "
        "--data gives the vocabulary, or --vocab_size; without them it is GPT-2's."
    )
    add_train_config(parser, skip=_NOT_TRAINS)
    parser.add_argument("--device", default="cpu", help=f"cpu, which is measured for a moment, or a GPU: {names}")
    parser.add_argument("--out", type=Path | None, default=None, help=SUPPRESS)  # of a run's config.yaml
    parser.add_argument("--gpus", type=int, default=1, help="how many devices share the work")
    parser.add_argument(
        "--mfu", type=float | None, default=None,
        help="share of the device's peak that is reached; if not given 0.6 on cpu, 0.4 on GPUs",
    )  # fmt: skip
    commands.add_subcommand("estimate", parser, help="parameters, FLOPs, memory and time of a run")


def run(arguments: Namespace) -> int:
    """Print the estimate."""
    config = config_of(arguments, skip=_NOT_TRAINS)
    config.check()
    if arguments.gpus < 1:
        raise UserError(f"estimate: 'gpus' must be at least 1, got {arguments.gpus}")
    if arguments.mfu is not None and not 0 < arguments.mfu <= 1:
        raise UserError(f"estimate: 'mfu' must be in (0, 1], got {arguments.mfu}")
    if config.model.task == "language" and config.batch_size % arguments.gpus:
        raise UserError(
            f"estimate: 'batch_size' must be a multiple of gpus ({arguments.gpus}), got {config.batch_size}"
        )

    from rich.console import Console
    from rich.table import Table

    if "parallel" in arguments.typed and arguments.gpus == 1:
        raise UserError("estimate: 'parallel' says how several devices share the work: add --gpus N, or leave it out")
    gpu, peak, mfu = _device(arguments, config)
    cost = _model(config, arguments.given).cost()
    table = Table(title=f"{arguments.gpus} x {gpu.name if gpu else 'this CPU'}, {config.precision}", show_header=False)
    for name, value in rows(config, cost, arguments.gpus, gpu, peak, mfu):
        table.add_row(name, value) if name else table.add_section()
    Console().print(table)
    return 0


def _device(arguments: Namespace, config: TrainConfig):
    """Return (GPU or None for the CPU, peak FLOP/s, utilisation)."""
    if arguments.device not in ("cpu", "auto"):  # auto: of a run's config.yaml
        gpu = estimate.find_gpu(arguments.device)
        if gpu is None:
            names = ", ".join(gpu.name for gpu in estimate.GPUS)
            raise UserError(f"estimate: 'device' must be cpu or one of {names}, got {arguments.device}")
        return gpu, gpu.float32 if config.precision == "float32" else gpu.half, arguments.mfu or _MFU["gpu"]

    import torch

    from fastllm.train.device import peak_flops

    if config.threads:
        torch.set_num_threads(config.threads)
    return None, peak_flops(torch.device("cpu"), config.precision), arguments.mfu or _MFU["cpu"]


def _model(config: TrainConfig, given: Collection[str]) -> ModelConfig:
    """Return the model's settings: of --init, or those given, with the vocabulary of --data."""
    from fastllm.train import checkpoint, initial
    from fastllm.train.task import task_of

    if config.init is not None:
        return initial.adopt(config, checkpoint.load_source(config.init)[0].config, given)
    if config.data is not None and config.vocab_size is None:
        return initial.settings_for(config, task_of(config, config.data).tokenizer)
    return config.model_for(config.vocab_size or _DEFAULT_VOCABULARY)


def rows(
    config: TrainConfig, cost: Cost, devices: int, gpu: estimate.Gpu | None, peak: float, mfu: float
) -> list[tuple[str, str]]:
    """Return the estimate as (what, how much); ("", "") parts the sections."""
    half, fsdp, again = config.precision != "float32", config.parallel == "fsdp", config.activation_checkpointing
    batch, sequences = config.sequences(cost.context_length), config.sequences_at_once(devices, cost.context_length)
    tokens = round(batch * cost.context_length)
    flops = estimate.flops_per_token(cost)
    memory = estimate.of_run(config, cost, devices)
    other = estimate.activations(cost, sequences, half, not again)
    traffic = estimate.traffic(cost, devices, fsdp, micro_batches=math.ceil(batch / devices / sequences))
    sending = traffic / estimate.link_speed(gpu, devices) if gpu else 0.0
    seconds = estimate.step_seconds(cost, batch, peak, mfu, devices=devices, checkpointing=again, communication=sending)
    room = gpu.memory if gpu else total_memory()
    of_room = "" if room is None else f" of {estimate.size(room)}"
    if room is not None and memory.total > room:
        of_room += f": DOES NOT FIT; {estimate.advice(config, cost, devices, room)}"
    return [
        ("parameters", f"{cost.parameters:,}"),
        ("tokens per step, per run", f"{tokens:,}, {tokens * config.max_steps:,}"),
        ("FLOPs per token", f"{flops:.3g}"),
        ("FLOPs per step, per run", f"{flops * tokens:.3g}, {flops * tokens * config.max_steps:.3g}"),
        ("", ""),
        *((name.replace("_", " "), estimate.size(value)) for name, value in vars(memory).items() if value),
        (f"activations {'without' if again else 'with'} checkpointing", estimate.size(other)),
        (f"memory per device ({config.parallel if devices > 1 else 'alone'})", estimate.size(memory.total) + of_room),
        ("", ""),
        ("peak per device", f"{peak / 1e12:.3g} TFLOP/s, of which {mfu:.0%} reached"),
        ("sent per step by each", f"{estimate.size(traffic)}, {sending:.3g} s" if gpu else estimate.size(traffic)),
        ("time per step", f"{seconds:.3g} s" + (", all of it sending" if sending >= seconds else "")),
        ("tokens/s", f"{tokens / seconds:,.0f}"),
        ("time of the run", _duration(seconds * config.max_steps)),
    ]


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
