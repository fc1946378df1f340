"""fastllm.nn's attention and Transformer classes beside torch.nn's, and patched models of transformers beside theirs.

    python -m benchmarks.bench_layers [--rounds N] [--threads N] [--peer torch] [--only TEXT]

Both have the same weights. A training step is forward and backward with dropout 0.1; evaluation is without gradients,
where torch.nn's classes take their fast path and transformers' models torch's fused attention. A quarter of the padded
batches' tokens is padding.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.harness import OURS, Case
from fastllm import nn, patch

OUTPUT = Path(__file__).parent / "results" / "layers" / "cpu.json"
B, T, E, H, F = 8, 256, 512, 8, 2048  # the base model of "Attention is all you need"
SHAPE = f"B{B} T{T} E{E} H{H}"
# Each class: what makes it, how many inputs its forward has, and what its padding masks are called.
LAYERS: dict[str, tuple[Callable, int, str]] = {
    "MultiheadAttention": (lambda n: n.MultiheadAttention(E, H, 0.1, batch_first=True), 3, "key_padding_mask"),
    "TransformerEncoderLayer": (lambda n: _layer(n, "Encoder"), 1, "src_key_padding_mask"),
    "TransformerEncoderLayer gelu pre-norm": (
        lambda n: _layer(n, "Encoder", activation="gelu", norm_first=True), 1, "src_key_padding_mask",
    ),
    "TransformerDecoderLayer": (lambda n: _layer(n, "Decoder"), 2, "memory_key_padding_mask"),
    "TransformerEncoder x 3": (lambda n: n.TransformerEncoder(_layer(n, "Encoder"), 3), 1, "src_key_padding_mask"),
    "Transformer 2 + 2": (
        lambda n: n.Transformer(E, H, 2, 2, F, 0.1, batch_first=True), 2,
        "src_key_padding_mask memory_key_padding_mask",
    ),
}  # fmt: skip

MODEL_B = 8
# Models of transformers: the class, its settings, and how many tokens; None where it takes pictures.
MODELS: dict[str, tuple[str, dict, int | None]] = {
    "BERT (MiniLM-L6's shape)": (
        "BertModel",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
        128,
    ),
    "ViT-S/16": (
        "ViTModel",
        {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536,
         "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        None,
    ),
    "GPT-2 (124M) without its head": ("GPT2Model", {"use_cache": False}, 128),
}  # fmt: skip


def _layer(classes, kind: str, **options):
    return getattr(classes, f"Transformer{kind}Layer")(E, H, F, 0.1, batch_first=True, **options)


def padding(batch: int, tokens: int) -> torch.Tensor:
    """Return a mask of sequences from `tokens` to half as many: True where there are none."""
    lengths = torch.linspace(tokens, tokens / 2, batch).long()
    return torch.arange(tokens) >= lengths[:, None]


def cases() -> Iterator[Case]:
    """Yield each class and model in a training step and in evaluation, without padding and with."""
    for name, (make, inputs, mask) in LAYERS.items():
        torch.manual_seed(0)
        theirs, ours = make(torch.nn), make(nn)
        ours.load_state_dict(theirs.state_dict())
        hidden = padding(B, T)
        calls: dict[str, dict] = {"": {}, " padded": dict.fromkeys(mask.split(), hidden)}
        if name == "MultiheadAttention":
            calls = {shape: {**options, "need_weights": False} for shape, options in calls.items()}
            calls[" with weights"] = {}
        # A decoder's padding is its memory's: each of its own tokens counts.
        visible = ~hidden if inputs != 2 else None
        setup = _vectors(inputs)
        yield from both(name, SHAPE, ours, theirs, setup, calls, visible)
    for name in MODELS:
        yield from model_cases(name)


def model_cases(name: str) -> Iterator[Case]:
    """Yield a model of transformers, patched, beside itself."""
    import transformers

    class_name, settings, tokens = MODELS[name]
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    theirs = kind(kind.config_class(**settings))
    ours = copy.deepcopy(theirs)
    patch(ours)
    if tokens is None:
        shape = f"B{MODEL_B} 197 tokens"
        yield from both(name, shape, ours, theirs, lambda: (torch.randn(MODEL_B, 3, 224, 224),), {"": {}}, None)
        return
    hidden, vocabulary = padding(MODEL_B, tokens), theirs.config.vocab_size
    calls = {"": {}, " padded": {"attention_mask": (~hidden).long()}}
    setup = lambda: (torch.randint(vocabulary, (MODEL_B, tokens)),)  # noqa: E731
    yield from both(name, f"B{MODEL_B} T{tokens}", ours, theirs, setup, calls, ~hidden)


def _vectors(inputs: int) -> Callable[[], tuple]:
    if inputs == 3:  # self-attention: one tensor, thrice
        return lambda: (torch.randn(B, T, E),) * 3
    return lambda: tuple(torch.randn(B, T, E) for _ in range(inputs))


def both(
    name: str,
    shape: str,
    ours,
    theirs,
    setup: Callable[[], tuple],
    calls: dict[str, dict],
    visible: torch.Tensor | None,
) -> Iterator[Case]:
    """Yield a module's work in training, then in evaluation, for each kind of call."""
    compiled = torch.compile(copy.deepcopy(theirs), dynamic=False)
    modules = {OURS: ours, "torch": theirs, "torch.compile": compiled}
    for training in (True, False):
        for suffix, options in calls.items():
            if training and suffix == " with weights":
                continue
            mode = "training step" if training else "evaluation"
            seen = visible if suffix == " padded" else None  # what stands at padding means nothing
            work = _step if training else _evaluate
            peers = {peer: work(module, options, seen) for peer, module in modules.items()}
            yield Case(f"{name} {mode}", shape + suffix, setup, peers, tolerance=None if training else 1e-4)


def _step(module, options: dict, visible: torch.Tensor | None) -> Callable:
    def call(*tensors):
        module.train()
        module.zero_grad()
        output = _first(module(*tensors, **options))
        (output * torch.linspace(-1, 1, output.size(-1))).sum().backward()
        return [output]

    return call


def _evaluate(module, options: dict, visible: torch.Tensor | None) -> Callable:
    def call(*tensors):
        module.eval()
        with torch.no_grad():
            output = _first(module(*tensors, **options))
        return [output if visible is None else output[visible]]

    return call


def _first(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


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
