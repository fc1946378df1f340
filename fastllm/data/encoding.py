"""Tokenizing pieces, in one process or in several: what comes out, and in what order, is the same."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastllm.data.pieces import PIECE, Piece
from fastllm.errors import UserError
from fastllm.tokenizers import EncodedBatch, Tokenizer, load_tokenizer

_AHEAD = 2  # batches a process has: one in work, one waiting


class Encoded(NamedTuple):
    """A piece and what became of it."""

    piece: Piece
    ids: np.ndarray  # of the shards' dtype
    bytes: int  # of its text in UTF-8


def encode(pieces: Iterable[Piece], folder: Path, dtype: np.dtype, workers: int) -> Iterator[Encoded]:
    """Tokenize pieces in order with the tokenizer stored in folder.

    Raises:
        UserError: the vocabulary lacks something in a text, or a process died.
    """
    if workers == 1:
        tokenizer = load_tokenizer(folder)
        for batch in _batches(pieces):
            yield from map(Encoded, batch, *_encode(tokenizer, [piece.text for piece in batch], dtype))
        return
    # Processes of their own, not copies of this one, which may have threads that hold locks.
    context = multiprocessing.get_context("spawn")
    with _signals_blocked():
        pool = ProcessPoolExecutor(workers, context, _start_worker, (folder, dtype))
    waiting: deque[tuple[list[Piece], Future]] = deque()
    try:
        for batch in _batches(pieces):
            with _signals_blocked():
                waiting.append((batch, pool.submit(_work, [piece.text for piece in batch])))
            if len(waiting) > _AHEAD * workers:
                yield from _result(*waiting.popleft())
        while waiting:
            yield from _result(*waiting.popleft())
    except BrokenProcessPool as error:
        raise UserError("prepare: a worker process was killed; if memory ran out, try --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold back what a terminal sends to all its processes: those that are started meanwhile never get it.

    It is for the process that started them, which ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group short pieces, so that a process has something to do."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text) + 1
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _result(batch: list[Piece], future: Future) -> Iterator[Encoded]:
    return map(Encoded, batch, *future.result())


def _encode(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype) -> tuple[EncodedBatch, list[int]]:
    batch = tokenizer.encode_batch(texts)
    ids = batch.ids  # what does not fit the dtype would come out as another token
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise UserError(f"prepare: token ids must be in [0, {tokenizer.vocab_size}), got {ids.min()} to {ids.max()}")
    return batch.astype(dtype), [len(text.encode("utf-8", "surrogatepass")) for text in texts]


# ----------------------------------------------------------------------------------------------------------------------
# In a process of its own
# ----------------------------------------------------------------------------------------------------------------------

_worker: tuple[Tokenizer, np.dtype] | None = None


def _start_worker(folder: Path, dtype: np.dtype) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = load_tokenizer(folder), dtype


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(texts: list[str]) -> tuple[EncodedBatch, list[int]]:
    assert _worker is not None
    tokenizer, dtype = _worker
    return _encode(tokenizer, texts, dtype)
