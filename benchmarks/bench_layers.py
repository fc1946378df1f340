"""fastllm.nn's attention and Transformer classes beside torch.nn's with the same weights, with and without padding.

    python -m benchmarks.bench_layers [--rounds N] [--threads N] [--peer torch] [--only TEXT]

A training step is forward and backward with dropout 0.1; evaluation is without gradients, where "torch" takes its fast
path. A quarter of the padded batches' tokens is padding.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.harness import OURS, Case
from fastllm import nn

OUTPUT = Path(__file__).parent / "results" / "layers" / "cpu.json"
B, T, E, H, F = 8, 256, 512, 8, 2048  # the base model of "Attention is all you need"
SHAPE = f"B{B} T{T} E{E} H{H}"
# Each class: what makes it, which inputs its forward has, and what its padding mask is called.
LAYERS: dict[str, tuple[Callable, int, str]] = {
    "MultiheadAttention": (lambda n: n.MultiheadAttention(E, H, 0.1, batch_first=True), 3, "key_padding_mask"),
    "TransformerEncoderLayer": (lambda n: _layer(n, "Encoder"), 1, "src_key_padding_mask"),
    "TransformerEncoderLayer gelu pre-norm": (
        lambda n: _layer(n, "Encoder", activation="gelu", norm_first=True), 1, "src_key_padding_mask",
    ),
    "TransformerDecoderLayer": (lambda n: _layer(n, "Decoder"), 2, "memory_key_padding_mask"),
    "TransformerEncoder x 3": (lambda n: n.TransformerEncoder(_layer(n, "Encoder"), 3), 1, "src_key_padding_mask"),
    "Transformer 2 + 2": (
        lambda n: n.Transformer(E, H, 2, 2, F, 0.1, batch_first=True), 2, "src_key_padding_mask",
    ),
}  # fmt: skip


def _layer(classes, kind: str, **options):
    return getattr(classes, f"Transformer{kind}Layer")(E, H, F, 0.1, batch_first=True, **options)


def padding() -> torch.Tensor:
    """Return a mask of sequences from T to T / 2 tokens: True where there are none."""
    lengths = torch.linspace(T, T / 2, B).long()
    return torch.arange(T) >= lengths[:, None]


def cases() -> Iterator[Case]:
    """Yield each class in a training step and in evaluation, without padding and with."""
    for name, (make, inputs, mask) in LAYERS.items():
        torch.manual_seed(0)
        theirs, ours = make(torch.nn), make(nn)
        ours.load_state_dict(theirs.state_dict())
        calls: dict[str, dict] = {"": {}, " padded": {mask: padding()}}
        for training in (True, False):
            for suffix, options in calls.items():
                if name == "MultiheadAttention":
                    options = {**options, "need_weights": False}
                mode = "training step" if training else "evaluation"
                yield case(f"{name} {mode}", SHAPE + suffix, ours, theirs, inputs, options, training)
        if name == "MultiheadAttention":
            yield case(f"{name} evaluation", f"{SHAPE} with weights", ours, theirs, inputs, {}, False)


def case(name: str, shape: str, ours, theirs, inputs: int, options: dict, training: bool) -> Case:
    """Return one class's work: forward and backward while training, else forward without gradients."""
    compiled = torch.compile(copy.deepcopy(theirs), dynamic=False)
    modules = {OURS: ours, "torch": theirs, "torch.compile": compiled}
    visible = ~next((mask for mask in options.values() if isinstance(mask, torch.Tensor)), torch.zeros(B, T).bool())
    works_on_tokens = shape.endswith("padded") and inputs == 1

    def step(module):
        def call(*tensors):
            module.train()
            module.zero_grad()
            output = _first(module(*tensors, **options))
            (output * tensors[0]).sum().backward()
            return [output]

        return call

    def evaluate(module):
        def call(*tensors):
            module.eval()
            with torch.no_grad():
                output = _first(module(*tensors, **options))
            return [output[visible] if works_on_tokens else output]  # what stands at padding means nothing

        return call

    def setup():
        if inputs == 3:  # self-attention: one tensor, thrice
            return (torch.randn(B, T, E),) * 3
        return tuple(torch.randn(B, T, E) for _ in range(inputs))

    peers = {peer: (step if training else evaluate)(module) for peer, module in modules.items()}
    return Case(name, shape, setup, peers, tolerance=None if training else 1e-4)


def _first(output) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_layers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds a case, at least 3 (default 7)")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's own choice)")
    parser.add_argument("--only", default="", help="measure only the cases whose name or shape contains this text")
    parser.add_argument("--peer", action="append", help="compare with this peer only; may be given again")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds must be at least 3 for quartiles, got {arguments.rounds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine, limit = harness.machine(), harness.limits()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases():
        if arguments.only not in f"{case.name} {case.shape}":
            continue
        if arguments.peer:
            case.peers = {name: peer for name, peer in case.peers.items() if name in {OURS, *arguments.peer}}
        rows.append(harness.measure(case, arguments.rounds))
        print(harness.describe(rows[-1], limit), flush=True)
        arguments.output.write_text(json.dumps({"machine": machine, "limits": limit, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
