"""Generation with GPT-2's smallest shape and random weights: tokens a second, beside transformers on the same weights.

    python -m benchmarks.bench_decode [--rounds N] [--threads N]

A decode step at batch 1 reads all weights once, so its limit is memory; the prompt's pass is limited by arithmetic.
Every peer generates greedily from the same prompts, and the ids are compared first.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import bench_ops, harness
from benchmarks.harness import OURS, Case
from fastllm.generation import generate_batch
from fastllm.models import GPT

OUTPUT = Path(__file__).parent / "results" / "decode" / "cpu.json"
NEW_TOKENS = 16  # of which the first comes with the prompt's pass
PROMPT = 128
PREFILL = 1024


def models():
    """Return GPT-2 124M with random weights, and the same in transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = GPT.from_pretrained(folder).eval()
    return ours, theirs


def decode_case(ours, theirs, batch: int, uncached: bool) -> Case:
    """Return the generation of NEW_TOKENS tokens after prompts of PROMPT tokens."""

    def fastllm(prompts):
        results = generate_batch(ours, list(prompts), NEW_TOKENS, temperature=0)
        return [torch.tensor([result.ids for result in results])]

    def transformers_with(use_cache):
        def generate(prompts):
            ids = theirs.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW_TOKENS, do_sample=False,
                use_cache=use_cache, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            return [ids[:, prompts.shape[1] :]]

        return generate

    peers = {OURS: fastllm, "transformers": transformers_with(True)}
    if uncached:
        peers["transformers, no cache"] = transformers_with(False)
    setup = lambda: (torch.randint(50257, (batch, PROMPT)),)  # noqa: E731
    return Case(f"generate {NEW_TOKENS}", f"B{batch} after {PROMPT}", setup, peers, tolerance=0.0)


def step_case(ours, theirs, batch: int) -> Case:
    """Return one decode step over a cache of PROMPT tokens: what each further token costs."""
    prompts = torch.randint(50257, (batch, PROMPT))
    cache = ours.new_cache(batch)
    ours.prefill(prompts, torch.full((batch,), PROMPT), cache)
    with torch.no_grad():
        past = theirs(prompts, use_cache=True).past_key_values

    def fastllm(tokens):
        cache.set_lengths(PROMPT)
        with torch.no_grad():
            return [ours(tokens, cache)[:, -1]]

    def transformers(tokens):
        past.crop(PROMPT - past.get_seq_length())
        with torch.no_grad():
            return [theirs(tokens, past_key_values=past, use_cache=True).logits[:, -1]]

    setup = lambda: (torch.randint(50257, (batch, 1)),)  # noqa: E731
    weights = 4 * ours.num_parameters()
    return Case("decode step", f"B{batch} after {PROMPT}", setup, {OURS: fastllm, "transformers": transformers},
                bytes=weights)  # fmt: skip


def prefill_case(ours, theirs) -> Case:
    """Return the pass over a prompt of PREFILL tokens, up to the logits of its last one."""
    cache = ours.new_cache(1)

    def fastllm(tokens):
        return [ours.prefill(tokens, torch.tensor([PREFILL]), cache)]

    def transformers(tokens):
        with torch.no_grad():
            return [theirs(tokens, use_cache=True, logits_to_keep=1).logits[:, -1]]

    blocks = sum(p.numel() for p in ours.blocks.parameters())
    return Case("prefill", f"B1 {PREFILL}", lambda: (torch.randint(50257, (1, PREFILL)),),
                {OURS: fastllm, "transformers": transformers}, flops=2 * blocks * PREFILL)  # fmt: skip


def cases() -> Iterator[tuple[Case, int]]:
    """Yield (case, tokens that one call of it makes or reads)."""
    for batch in (1, 8):
        yield bench_ops.decode_case(batch, 12, 12, 1024, 64), batch
    ours, theirs = models()
    for batch in (1, 8):
        yield step_case(ours, theirs, batch), batch
    yield prefill_case(ours, theirs), PREFILL
    for batch in (1, 8):
        yield decode_case(ours, theirs, batch, uncached=batch == 1), batch * NEW_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds a case, at least 3 (default 5)")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's own choice)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds must be at least 3 for quartiles, got {arguments.rounds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine, limit = harness.machine(), harness.limits()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rows = []
    for case, tokens in cases():
        row = harness.measure(case, arguments.rounds)
        row["tokens_s"] = {name: tokens / seconds for name, seconds in row["seconds"].items()}
        rows.append(row)
        print(harness.describe(row, limit))
        print("  tokens/s: " + ", ".join(f"{name} {speed:.1f}" for name, speed in row["tokens_s"].items()), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, "limits": limit, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
