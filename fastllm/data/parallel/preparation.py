"""From pairs of sentences to a data folder.

The folder has, for each split ("train", "val" and "test") and side, the token ids in shards, where sentences begin, the
pair of tokenizers, and manifest.json, which counts, says what was left out and has every file's checksum. It is made
under another name and renamed when it is whole. The corpus is read three times: to count it; to train the tokenizer and
to know what is held out; and to tokenize it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastllm.data.discovery import MANIFEST
from fastllm.data.documents import shown
from fastllm.data.encoding import Encoded
from fastllm.data.parallel.filters import Languages, Report, key, length_fault, likeness, text_fault
from fastllm.data.parallel.sources import Corpus, Pair
from fastllm.data.pieces import Piece
from fastllm.data.preparation import LEAST_SHARD, refuse_other_folders
from fastllm.data.shards import SplitWriter
from fastllm.errors import UserError, UserValueError
from fastllm.files import locked_folder, put_in_place, sha256, unfinished, write_json
from fastllm.tokenizers import PairTokenizer, SentencePieceTokenizer, load_tokenizer

VERSION = 1
KIND = "parallel"
SPLITS = ("train", "val", "test")
SIDES = ("source", "target")
_FEW_DOCUMENTS = 20  # with fewer, blocks of neighbouring pairs are held out
_BLOCKS = 200  # of a corpus without documents, as far as they have _LEAST_BLOCK pairs
_LEAST_BLOCK = 10

Progress = Callable[[str, int, int], None]  # (what is done, how far, of how much)


@dataclass
class ParallelOptions:
    """How pairs become a data folder.

    Args:
        val_share: the share of the pairs for validation, in [0, 1), where no corpus is named for it: whole documents,
            drawn at random; with fewer than 20 of them, blocks of neighbouring pairs.
        test_share: the same for a test split.
        seed: of the draw.
        vocab_size: tokens of the vocabulary, or of each of two.
        model_type: sentencepiece's, unigram or bpe.
        separate_vocabularies: one for each side.
        tokenizer_from: take the tokenizers of this data folder, run or model instead.
        max_tokens: pairs with a longer side are left out of training; those of validation and test never are.
        max_ratio: pairs of which one side has more tokens than so many times the other's are left out of training,
            unless they differ by 10 tokens at most.
        keep_duplicates: take a pair as often as it is there.
        tag: stands in front of every source, as "<2de>".
        reverse_tag: train the other direction too, with this tag in front of the sources that are targets else.
        shard_tokens: token ids in a file, at least a million.
    """

    val_share: float = 0.02
    test_share: float = 0.0
    seed: int = 0
    vocab_size: int = 8000
    model_type: str = "unigram"
    separate_vocabularies: bool = False
    tokenizer_from: Path | None = None
    max_tokens: int = 128
    max_ratio: float = 3.0
    keep_duplicates: bool = False
    tag: str = ""
    reverse_tag: str = ""
    shard_tokens: int = 100_000_000

    def check(self) -> None:
        """Raise UserError for the first value that cannot work."""
        for name in ("val_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserValueError(f"prepare parallel: '{name}' must be in [0, 1), got {getattr(self, name)}")
        for name, least in (("max_tokens", 1), ("max_ratio", 1), ("shard_tokens", LEAST_SHARD)):
            if getattr(self, name) < least:
                raise UserValueError(
                    f"prepare parallel: '{name}' must be at least {least:,}, got {getattr(self, name):,}"
                )
        for name in ("tag", "reverse_tag"):
            tag = getattr(self, name)
            if tag and (tag.split() != [tag] or "," in tag):
                raise UserValueError(f"prepare parallel: '{name}' must be one word without commas, got '{tag}'")
        if self.reverse_tag and (not self.tag or self.tag == self.reverse_tag):
            raise UserValueError(
                "prepare parallel: 'reverse_tag' needs another 'tag' for the first direction, or the model could not "
                "tell them apart"
            )
        if self.reverse_tag and self.separate_vocabularies:
            raise UserValueError("prepare parallel: 'reverse_tag' needs one vocabulary for both sides")


def prepare_parallel(
    corpus: Corpus, out: Path, *, options: ParallelOptions | None = None, val: Corpus | None = None,
    test: Corpus | None = None, progress: Progress | None = None,
) -> dict:  # fmt: skip
    """Tokenize pairs and write a data folder.

    Args:
        corpus: the pairs to train on.
        out: the folder to write; a data folder that is there is replaced when the new one is whole.
        options: what can be chosen.
        val, test: the pairs of these splits, in place of a share of corpus.
        progress: is told how far it is, in pairs.

    Returns:
        The manifest, as written.

    Raises:
        UserError: an option or the pairs cannot work, or the folder cannot be written; what was at out is still there.
    """
    options = options or ParallelOptions()
    options.check()
    out = out.resolve()
    refuse_other_folders(out)
    temporary = unfinished(out)
    try:
        with locked_folder(temporary, out):
            preparation = _Preparation(temporary, corpus, {"val": val, "test": test}, options)
            manifest = preparation.run(progress or (lambda *_: None))
            put_in_place(temporary, out)
    except OSError as error:
        raise UserError(
            f"cannot write {shown(out)}: {error.strerror or error}; nothing that was there is lost"
        ) from error
    return manifest


class _Preparation:
    """One folder on its way."""

    def __init__(self, folder: Path, corpus: Corpus, named: dict[str, Corpus | None], options: ParallelOptions) -> None:
        self.folder, self.corpus, self.options = folder, corpus, options
        self.named = {name: other for name, other in named.items() if other is not None}
        self.report = Report()
        self.notes: list[str] = []
        self.held_out: set[bytes] = set()  # keys of the sources of val and test

    def run(self, progress: Progress) -> dict:
        options, report = self.options, self.report
        self._count(progress)
        self._read_held_out()
        tokenizer = self._tokenizer()
        tokenizer.save(self.folder)
        files = {file.name: sha256(file) for file in sorted(self.folder.iterdir())}
        writers = {name: _PairWriter(self.folder, name, tokenizer, options.shard_tokens) for name in SPLITS}
        seen: set[bytes] = set()
        for number, (split, pair) in enumerate(self._split_pairs(), 1):
            progress("tokenizing", number, self.total)
            fault = self._fault(split, pair, seen)
            for one in self._directions(pair) if fault is None else ():
                fault = writers[split].add(one, options if split == "train" else None)
                if fault is not None:
                    break
                report.kept += split == "train"
            if fault is not None:
                report.drop(fault, pair)
        splits = {name: writer.close() for name, writer in writers.items()}
        for name in ("train", "val"):
            if not splits[name]["pairs"]:
                told = "; ".join(report.counted()) or "there are none"
                raise UserError(f"prepare parallel: no pair is left for {name}: {told}")
        for writer in writers.values():
            files |= writer.checksums
        self._warn()
        manifest = {
            "version": VERSION,
            "kind": KIND,
            "tokenizer": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "source_vocab_size": tokenizer.source_vocab_size,
            "tags": list(tokenizer.tags),
            "dtype": writers["train"].dtype.str,
            "sources": self.corpus.names,
            "held_out_sources": {name: other.names for name, other in self.named.items()},
            "held_out": self.how,
            "dropped": report.to_json(),
            "notes": self.notes,
            "splits": splits,
            "files": files,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    # --- what is held out ---------------------------------------------------------------------------------------------

    def _count(self, progress: Progress) -> None:
        """Read the corpus once; choose the documents, or blocks of pairs, that are for validation and test."""
        documents: Counter[int] = Counter()
        tags: set[str] = {tag for tag in (self.options.tag, self.options.reverse_tag) if tag}
        self.total = 0
        for pair in self.corpus.pairs():
            self.total += 1
            documents[pair.document] += 1
            tags |= {pair.tag} - {""}
            if self.total % 1000 == 0:
                progress("reading", self.total, 0)
        if not self.total:
            raise UserValueError(f"prepare parallel: there are no pairs in {', '.join(self.corpus.names)}")
        self.tags = sorted(tags)
        self.block = 0 if len(documents) >= _FEW_DOCUMENTS else max(_LEAST_BLOCK, self.total // _BLOCKS)
        units = Counter(self._units()) if self.block else documents
        order = np.random.Generator(np.random.PCG64(self.options.seed)).permutation(sorted(units)).tolist()
        self.split_of: dict[int, str] = {}
        self.how: dict[str, str] = {}
        for name, share in (("val", self.options.val_share), ("test", self.options.test_share)):
            if name in self.named or not share:
                self.how[name] = f"all of {', '.join(self.named[name].names)}" if name in self.named else "none"
                continue
            wanted, taken = max(1, round(share * self.total)), 0
            for unit in order:
                if taken >= wanted:
                    break
                if unit not in self.split_of and taken + units[unit] <= max(2 * wanted, min(units.values())):
                    self.split_of[unit] = name
                    taken += units[unit]
            what = f"blocks of {self.block} neighbouring pairs" if self.block else "whole documents"
            self.how[name] = f"{taken:,} pairs, {what} drawn with the seed {self.options.seed}"

    def _units(self) -> Iterator[int]:
        return (number // self.block for number in range(self.total))

    def _split_pairs(self) -> Iterator[tuple[str, Pair]]:
        """Yield every pair with the name of its split."""
        number = -1
        for number, pair in enumerate(self.corpus.pairs()):
            unit = number // self.block if self.block else pair.document
            yield self.split_of.get(unit, "train"), pair
        if number + 1 != self.total:
            raise UserError("prepare parallel: the files changed between two readings; run it again")
        for name, corpus in self.named.items():
            yield from ((name, pair) for pair in corpus.pairs())

    def _read_held_out(self) -> None:
        self.held_out = {key(pair.source) for split, pair in self._split_pairs() if split != "train"}

    def _fault(self, split: str, pair: Pair, seen: set[bytes]) -> str | None:
        """Return why a pair is left out, so far as its text says."""
        fault = text_fault(pair)
        if split != "train":  # there nothing is left out but what cannot be translated
            return fault if fault == "empty" else None
        if fault is not None:
            return fault
        if key(pair.source) in self.held_out or (self.options.reverse_tag and key(pair.target) in self.held_out):
            return "held out"
        if not self.options.keep_duplicates:
            own = key(pair.source, pair.target, pair.tag)
            if own in seen:
                return "duplicate"
            seen.add(own)
        return None

    def _directions(self, pair: Pair) -> Iterator[Pair]:
        """Yield a pair as it is trained on: with its tags, and in the other direction too if that is wanted."""
        for tag, source, target in (
            (self.options.tag, pair.source, pair.target),
            (self.options.reverse_tag, pair.target, pair.source),
        ):
            if tag or source is pair.source:
                tags = [one for one in (tag, pair.tag) if one]
                yield pair._replace(source=" ".join([*tags, source]), target=target)

    # --- tokenizer ----------------------------------------------------------------------------------------------------

    def _tokenizer(self) -> PairTokenizer:
        options = self.options
        if options.tokenizer_from is not None:
            tokenizer = load_tokenizer(options.tokenizer_from)
            if not isinstance(tokenizer, PairTokenizer):
                raise UserError(
                    f"prepare parallel: 'tokenizer_from' must have a pair of tokenizers, as translation models have; "
                    f"{shown(options.tokenizer_from)} has one of kind {tokenizer.kind}"
                )
            if missing := [tag for tag in self.tags if tag not in tokenizer.tags]:
                raise UserError(
                    f"prepare parallel: the tokenizer of {shown(options.tokenizer_from)} has no tag '{missing[0]}'; it "
                    f"has {', '.join(tokenizer.tags) or 'none'}"
                )
            return tokenizer
        sides = ((0,), (1,)) if options.separate_vocabularies else ((0, 1),)
        source, *target = [
            SentencePieceTokenizer.train(
                self._texts(chosen), options.vocab_size, model_type=options.model_type,
                control_symbols=self.tags if 0 in chosen else (),
            )
            for chosen in sides
        ]  # fmt: skip
        return PairTokenizer(source, target[0] if target else None)

    def _texts(self, sides: tuple[int, ...]) -> Iterator[str]:
        for split, pair in self._split_pairs():
            if split == "train" and text_fault(pair) is None:
                for side in sides:
                    yield f" {pair[side]}"

    # --- warnings -----------------------------------------------------------------------------------------------------

    def _warn(self) -> None:
        if warning := likeness(self.corpus.pairs()):
            self.notes.append(warning)
        if self.named:
            languages = Languages(self.corpus.pairs())
            for name, corpus in self.named.items():
                if languages.swapped(corpus.pairs()):
                    self.notes.append(
                        f"the pairs for {name} seem to have their sides the other way round: their sources look like "
                        "the training targets"
                    )


class _PairWriter:
    """Writes a split's two sides."""

    def __init__(self, folder: Path, name: str, tokenizer: PairTokenizer, shard_tokens: int) -> None:
        self._name, self._tokenizer = name, tokenizer
        most = max(tokenizer.vocab_size, tokenizer.source_vocab_size)
        self.dtype = np.dtype("<u2" if most <= 2**16 else "<u4")
        ends = (tokenizer.source_end, tokenizer.end)
        self._writers = [
            SplitWriter(folder, f"{name}-{side}", self.dtype, shard_tokens, end)
            for side, end in zip(SIDES, ends, strict=True)
        ]
        self._pairs = 0

    def add(self, pair: Pair, limits: ParallelOptions | None) -> str | None:
        """Write a pair; return why it is left out, if it is."""
        try:
            ids = self._tokenizer.encode_source(pair.source), self._tokenizer.encode_target(pair.target)
        except UserError:  # tokenizers from elsewhere do not know every character
            return "unknown"
        if limits is not None:
            fault = length_fault(len(ids[0]), len(ids[1]), limits.max_tokens, limits.max_ratio)
            if fault is not None:
                return fault
        for writer, own, text in zip(self._writers, ids, (pair.source, pair.target), strict=True):
            writer.add(Encoded(Piece(text, self._name, ends=True), own[:-1].astype(self.dtype), len(text.encode())))
        self._pairs += 1
        return None

    @property
    def checksums(self) -> dict[str, str]:
        return {**self._writers[0].checksums, **self._writers[1].checksums}

    def close(self) -> dict:
        """Finish the files; return the manifest's entry."""
        sides = {side: writer.close() for side, writer in zip(SIDES, self._writers, strict=True)}
        return {"pairs": self._pairs, **sides}
