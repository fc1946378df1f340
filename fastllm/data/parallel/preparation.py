"""From pairs of sentences to a data folder.

The folder has, for each split ("train", "val" and "test") and side, the token ids in shards, where sentences begin, the
pair of tokenizers, and manifest.json, which counts, says what was left out and has every file's checksum. It is made
under another name and renamed when it is whole. The corpus is read four times: to count it, to know what is held out,
to train the tokenizer, and to tokenize it. Of each pair eight bytes are kept, by which it is known if it comes again.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastllm.data.discovery import MANIFEST
from fastllm.data.documents import shown
from fastllm.data.encoding import Encoded
from fastllm.data.parallel.filters import Report, exact_key, length_fault, text_fault
from fastllm.data.parallel.sources import Corpus, Pair
from fastllm.data.parallel.splits import SPLITS, Splits
from fastllm.data.pieces import Piece
from fastllm.data.preparation import LEAST_SHARD, refuse_other_folders
from fastllm.data.shards import SplitWriter
from fastllm.errors import UserError, UserValueError
from fastllm.files import locked_folder, put_in_place, sha256, unfinished, write_json
from fastllm.tokenizers import PairTokenizer, SentencePieceTokenizer, load_tokenizer

VERSION = 1
KIND = "parallel"
SIDES = ("source", "target")
_SOME = 0.2  # of the pairs: with equal sides, something is probably wrong
_STEP = 1000  # pairs after which progress is told

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
        max_tokens: pairs with a longer side, the token that ends it and tags counted, are left out; but of files that
            are named for a split nothing is left out for its length: figures are to be those of the whole.
        min_tokens: pairs with a shorter side are left out.
        max_ratio: pairs of which one side has more tokens than so many times the other's are left out, unless they
            differ by 10 tokens at most.
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
    min_tokens: int = 1
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
        for name, least in (("max_tokens", 1), ("min_tokens", 1), ("max_ratio", 1), ("shard_tokens", LEAST_SHARD)):
            if getattr(self, name) < least:
                raise UserValueError(
                    f"prepare parallel: '{name}' must be at least {least:,}, got {getattr(self, name):,}"
                )
        if self.min_tokens > self.max_tokens:
            raise UserValueError(
                f"prepare parallel: 'min_tokens' must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}"
            )
        for name in ("tag", "reverse_tag"):
            if getattr(self, name):
                check_tag(name, getattr(self, name))
        if self.reverse_tag and (not self.tag or self.tag == self.reverse_tag):
            raise UserValueError(
                "prepare parallel: 'reverse_tag' needs another 'tag' for the first direction, or the model could not "
                "tell them apart"
            )
        if self.reverse_tag and self.separate_vocabularies:
            raise UserValueError("prepare parallel: 'reverse_tag' needs one vocabulary for both sides")


def check_tag(name: str, tag: str) -> None:
    """Raise UserError if a tag cannot be a token of its own."""
    if tag.split() != [tag] or "," in tag:
        raise UserValueError(f"prepare parallel: '{name}' must be one word without commas, got '{tag}'")


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
            named = {"val": val, "test": test}
            manifest = _Preparation(temporary, corpus, named, options, progress or (lambda *_: None)).run()
            put_in_place(temporary, out)
    except OSError as error:
        raise UserError(
            f"cannot write {shown(out)}: {error.strerror or error}; nothing that was there is lost"
        ) from error
    return manifest


class _Preparation:
    """One folder on its way."""

    def __init__(
        self, folder: Path, corpus: Corpus, named: dict[str, Corpus | None], options: ParallelOptions,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.folder, self.corpus, self.options, self.progress = folder, corpus, options, progress
        shares = {"val": options.val_share, "test": options.test_share}
        given = {name: other for name, other in named.items() if other is not None}
        if "val" not in given and not options.val_share:
            raise UserValueError("prepare parallel: 'val_share' must be above 0 where no validation pairs are named")
        self.splits = Splits(
            corpus, given, shares, options.seed, reverse=bool(options.reverse_tag), told=self._teller("reading")
        )
        for tag in self.splits.tags:
            check_tag("tag", tag)
        self.tags = sorted(self.splits.tags | {tag for tag in (options.tag, options.reverse_tag) if tag})
        self.report = Report()
        self.seen: set[bytes] = set()

    def _teller(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self.progress(what, done, of) if done % _STEP == 0 else None

    def run(self) -> dict:
        options, report = self.options, self.report
        tokenizer = self._tokenizer()
        tokenizer.save(self.folder)
        files = {file.name: sha256(file) for file in sorted(self.folder.iterdir())}
        writers = {name: _PairWriter(self.folder, name, tokenizer, options.shard_tokens) for name in SPLITS}
        tell = self._teller("tokenizing")
        for number, (split, pair) in enumerate(self.splits, 1):
            fault = self._fault(split, pair) or writers[split].add(
                list(self._directions(pair)), None if split in self.splits.named else options
            )
            if fault is not None:
                report.drop(fault, pair, split)
            tell(number, self.splits.total)
        splits = {name: writer.close() for name, writer in writers.items()}
        for name in ("train", "val"):
            if not splits[name]["pairs"]:
                told = "; ".join(report.counted()) or "there are none"
                raise UserError(f"prepare parallel: no pair is left for {name}: {told}")
        for writer in writers.values():
            files |= writer.checksums
        manifest = {
            "version": VERSION,
            "kind": KIND,
            "tokenizer": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "source_vocab_size": tokenizer.source_vocab_size,
            "tags": list(tokenizer.tags),
            "dtype": writers["train"].dtype.str,
            "sources": self.corpus.names,
            "held_out_sources": {name: other.names for name, other in self.splits.named.items()},
            "held_out": self.splits.how,
            "pairs_read": self.splits.total,
            "dropped": report.to_json(),
            "notes": self._notes({name: np.array(writer.lengths) for name, writer in writers.items()}),
            "splits": splits,
            "files": files,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    def _fault(self, split: str, pair: Pair) -> str | None:
        """Return why a pair is left out, so far as its text says; of named files only what is empty."""
        fault = text_fault(pair)
        if split in self.splits.named:
            return fault if fault in ("empty", "surrogate") else None
        if fault is None and split == "train" and self.splits.is_held_out(pair):
            return "held out"
        if fault is None and not self.options.keep_duplicates:
            own = exact_key(*pair.tags, pair.source, pair.target)
            if own in self.seen:
                return "duplicate"
            self.seen.add(own)
        return fault

    def _directions(self, pair: Pair) -> Iterator[Pair]:
        """Yield a pair as it is trained on: with its tags, and in the other direction too if that is wanted."""
        for tag, source, target in (
            (self.options.tag, pair.source, pair.target),
            (self.options.reverse_tag, pair.target, pair.source),
        ):
            if tag or source is pair.source:
                tags = [one for one in (tag, *pair.tags) if one]
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
        for split, pair in self.splits:
            if split == "train" and text_fault(pair) is None:
                for side in sides:
                    yield f" {pair[side]}"

    # --- warnings -----------------------------------------------------------------------------------------------------

    def _notes(self, lengths: dict[str, np.ndarray]) -> list[str]:
        """Return what may be a mistake, in sentences."""
        notes, report = self.splits.samples.warnings(), self.report
        if (equal := report.counts["identical"]) > _SOME * self.splits.trained:
            notes.append(
                f"{equal / self.splits.trained:.0%} of the pairs have the same text on both sides: is the target in "
                "another language than the source?"
            )
        for name in self.splits.named:
            if lost := report.of_split[name]:
                notes.append(
                    f"{lost:,} pairs of the files for {name} are left out, so figures are not those of all of them"
                )
            if count := int((lengths[name] > self.options.max_tokens).sum()):
                notes.append(
                    f"{count:,} pairs of the files for {name} have more tokens than max_tokens "
                    f"({self.options.max_tokens}); they stay, and the longest needs a context_length of "
                    f"{lengths[name].max()}"
                )
        return notes


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
        self.lengths = array("i")  # of the longer side of each pair

    def add(self, pairs: list[Pair], limits: ParallelOptions | None) -> str | None:
        """Write the directions of a pair, all or none; return why it is left out, if it is."""
        encoded = []
        for pair in pairs:
            try:
                ids = self._tokenizer.encode_source(pair.source), self._tokenizer.encode_target(pair.target)
            except UserError:  # tokenizers from elsewhere do not know every character
                return "unknown"
            if limits is not None:
                lengths = len(ids[0]), len(ids[1])
                fault = length_fault(*lengths, limits.max_tokens, limits.min_tokens, limits.max_ratio)
                if fault is not None:
                    return fault
            encoded.append((pair, ids))
        for pair, ids in encoded:
            self.lengths.append(max(map(len, ids)))
            for writer, own, text in zip(self._writers, ids, (pair.source, pair.target), strict=True):
                writer.add(Encoded(Piece(text, self._name, ends=True), own[:-1].astype(self.dtype), len(text.encode())))
        self._pairs += len(encoded)
        return None

    @property
    def checksums(self) -> dict[str, str]:
        return {**self._writers[0].checksums, **self._writers[1].checksums}

    def close(self) -> dict:
        """Finish the files; return the manifest's entry."""
        sides = {side: writer.close() for side, writer in zip(SIDES, self._writers, strict=True)}
        return {"pairs": self._pairs, **sides}
