"""What a run costs, as formulas: parameters, FLOPs, memory and time. Knows nothing of torch; measures nothing.

# B sequences, T tokens of context, C channels, L blocks, V vocabulary, N parameters
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fastllm.models.config import BlockCost, Cost

FLOAT32 = 4  # bytes
GPUS_A_NODE = 8
NETWORK = 50e9  # bytes/s a GPU between nodes: one 400 Gb/s port each, as in NVIDIA's DGX H100


class Run(Protocol):
    """What the formulas read of a TrainConfig."""

    parallel: str
    precision: str
    activation_checkpointing: bool
    ema_decay: float

    def sequences_at_once(self, processes: int, context_length: int) -> float:
        """Return how many sequences of context_length tokens one process computes together."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's limits, from NVIDIA's data sheets; "dense" is half of what a sheet gives "with sparsity".

    Args:
        name: the words by which torch.cuda.get_device_name is known.
        half: dense bfloat16 (float16 before Ampere) tensor-core FLOP/s with float32 accumulation.
        float32: FLOP/s without tensor cores.
        memory: bytes.
        link: bytes/s to the GPUs beside it, one way: NVLink where there is one, PCIe otherwise.
    """

    name: str
    half: float
    float32: float
    memory: float
    link: float


GPUS = (
    Gpu("B200", 2250e12, 75e12, 180e9, 900e9),  # Blackwell architecture brief, HGX B200
    Gpu("H200", 989e12, 67e12, 141e9, 450e9),  # H200 data sheet, SXM
    Gpu("H100", 989e12, 67e12, 80e9, 450e9),  # H100 data sheet, SXM
    Gpu("H100 PCIe", 756e12, 51e12, 80e9, 64e9),  # H100 data sheet, PCIe
    Gpu("A100", 312e12, 19.5e12, 80e9, 300e9),  # A100 data sheet, 80 GB SXM
    Gpu("L40S", 362e12, 91.6e12, 48e9, 32e9),  # L40S data sheet
    Gpu("L4", 121e12, 30.3e12, 24e9, 32e9),  # L4 data sheet
    Gpu("A10", 125e12, 31.2e12, 24e9, 32e9),  # A10 data sheet
    Gpu("RTX 4090", 165e12, 82.6e12, 24e9, 32e9),  # Ada architecture white paper, appendix A
    Gpu("RTX 3090", 71e12, 35.6e12, 24e9, 32e9),  # Ampere GA102 white paper, appendix A
    Gpu("V100", 125e12, 15.7e12, 32e9, 150e9),  # V100 data sheet, SXM2
    Gpu("T4", 65e12, 8.1e12, 16e9, 16e9),  # T4 data sheet
)


def find_gpu(name: str) -> Gpu | None:
    """Return the listed GPU whose words are all in name, the one with most words; None if there is none."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found = [gpu for gpu in GPUS if set(gpu.name.lower().split()) <= words]
    return max(found, key=lambda gpu: len(gpu.name.split()), default=None)


# --- parameters and FLOPs --------------------------------------------------------------------------------------------


def flops_per_token(cost: Cost) -> float:
    """Return the model FLOPs of training on one token, forward and backward (PaLM, Chowdhery et al., 2022, appendix B).

    6 for each parameter in a matrix product (2 forward, 4 backward), and 12 L C T for attention in the paper. A token
    of a causal model sees (T + 1) / 2 others on average, with a window fewer, and these kernels skip the rest, so only
    those are counted: counting work that is never done would let the utilisation pass 100%. Embedding look-ups, norms
    and the like, and what activation checkpointing computes again, count for nothing.
    """
    return 3 * (_blocks_forward(cost) + 2 * cost.output_matrix)


def _blocks_forward(cost: Cost) -> float:
    return sum(block.count * (2 * block.matrices + 4 * block.attention) for block in cost.blocks)


def computed_flops_per_token(cost: Cost, activation_checkpointing: bool) -> float:
    """Return the FLOPs that are really computed a token: activation checkpointing runs each block forward twice."""
    again = _blocks_forward(cost) if activation_checkpointing else 0.0
    return flops_per_token(cost) + again


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    half_weights: float
    activations: float

    @property
    def total(self) -> float:
        """Return their sum; torch and the system take more, 1 to 2 GB on a GPU."""
        return sum(vars(self).values())


def block_activations(block: BlockCost, half: bool) -> int:
    """Return the bytes that a block keeps a token for its backward, as these kernels keep them."""
    return FLOAT32 * block.kept_float32 + (2 if half else FLOAT32) * block.kept


def activations(cost: Cost, sequences: float, half: bool, checkpointing: bool) -> float:
    """Return the bytes of activations that a micro-batch holds when its backward begins.

    With checkpointing a block keeps its two inputs (branch and residual; the first has the embedding alone), and one
    block at a time has everything.
    """
    c, kept = cost.channels, {block: block_activations(block, half) for block in cost.blocks}
    ends = FLOAT32 * (2 * c + 2)  # the last residual sum and its norm's two numbers; the gradient of the last output
    inputs = FLOAT32 * c + (cost.n_layer - 1) * (FLOAT32 + (2 if half else FLOAT32)) * c
    each = sum(block.count * size for block, size in kept.items())
    blocks = inputs + max(kept.values()) if checkpointing else each
    return sequences * cost.context_length * (blocks + ends)


def memory(
    cost: Cost, sequences: float, *, devices: int = 1, fsdp: bool = False, half: bool = False,
    checkpointing: bool = False, ema: bool = False,
) -> Memory:  # fmt: skip
    """Return what one of several devices holds.

    float32 weights, gradients and AdamW's two moments are 16 bytes a parameter (ZeRO, Rajbhandari et al., 2020, with
    the weights in float32 throughout); FSDP divides them all by the devices and gathers a block's weights, its
    neighbour's ahead of time and a block's gradients, beside the embeddings, when they are needed. Half-precision
    copies of the matrices live until their backward, with checkpointing those of one block.

    Args:
        cost: of the model.
        sequences: of context_length tokens, a device's micro-batch.
        devices: how many share the work.
        fsdp: whether the model is shared out too; otherwise each has all of it.
        half: whether matrix products are in bfloat16 or float16.
        checkpointing: whether blocks are computed again in backward.
        ema: whether a moving average of the weights is kept.
    """
    count, block = cost.parameters, max(block.parameters for block in cost.blocks)
    own = FLOAT32 * count / (devices if fsdp else 1)
    gathered = FLOAT32 * (3 * block + cost.other_parameters) if fsdp and devices > 1 else 0.0
    one, all_of_them = max(b.matrices for b in cost.blocks), sum(b.count * b.matrices for b in cost.blocks)
    matrices = one if checkpointing else all_of_them
    return Memory(
        weights=own, gradients=own, optimizer=2 * own, average=own if ema else 0.0, gathered=gathered,
        half_weights=2.0 * matrices if half else 0.0,
        activations=activations(cost, sequences, half, checkpointing),
    )  # fmt: skip


def of_run(config: Run, cost: Cost, devices: int) -> Memory:
    """Return what one of several devices holds in a run."""
    return memory(
        cost, config.sequences_at_once(devices, cost.context_length), devices=devices, fsdp=config.parallel == "fsdp",
        half=config.precision != "float32", checkpointing=config.activation_checkpointing, ema=config.ema_decay > 0,
    )  # fmt: skip


def advice(config: Run, cost: Cost, devices: int, room: float) -> str:
    """Return what to change, the first that helps most, for a run that needs more than room on a device."""
    used = of_run(config, cost, devices)
    fixed = used.total - used.activations
    ways: Sequence[str] = ("a smaller n_embd or n_layer",)
    if fixed < room:
        smaller = int(config.sequences_at_once(devices, cost.context_length) * (room - fixed) / used.activations)
        ways = (
            *(
                [f"--micro_batch_size {smaller}, which gives the same step,"]
                if smaller
                else ["a smaller context_length"]
            ),
            *([] if config.activation_checkpointing else ["--activation_checkpointing"]),
        )
    return f"take {' or '.join(ways)}".rstrip(",")


def size(value: float) -> str:
    """Return bytes for readers."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:.0f} B"


# --- time ------------------------------------------------------------------------------------------------------------


def traffic(cost: Cost, devices: int, fsdp: bool, micro_batches: int = 1) -> float:
    """Return the bytes each device sends a step: float32, by rings.

    DDP all-reduces the gradients once, 2 (n - 1) / n of them; FSDP, for each micro-batch, gathers the weights for
    forward and again for backward and reduce-scatters the gradients, 3 (n - 1) / n (ZeRO, Rajbhandari et al., 2020,
    section 7).
    """
    return FLOAT32 * cost.parameters * (3 * micro_batches if fsdp else 2) * (devices - 1) / devices


def link_speed(gpu: Gpu, devices: int) -> float:
    """Return the bytes/s of the slowest link: between neighbours in a node, the network beyond one node."""
    return gpu.link if devices <= GPUS_A_NODE else min(gpu.link, NETWORK)


def step_seconds(
    cost: Cost, sequences: float, peak: float, utilisation: float, *, devices: int = 1, checkpointing: bool = False,
    communication: float = 0.0,
) -> float:  # fmt: skip
    """Return the seconds of one step of all devices: the longer of computing and sending, which overlap.

    Args:
        cost: of the model.
        sequences: the global batch.
        peak: one device's FLOP/s.
        utilisation: the share of the peak that computing reaches.
        devices: how many share the batch.
        checkpointing: whether blocks are computed again in backward.
        communication: seconds of sending.
    """
    flops = computed_flops_per_token(cost, checkpointing) * sequences * cost.context_length
    return max(flops / (peak * utilisation * devices), communication)
