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
    with _signals_held():
        pool = ProcessPoolExecutor(workers, context, _start_worker, (folder, dtype))
    waiting: deque[tuple[list[Piece], Future]] = deque()
    try:
        for batch in _batches(pieces):
            with _signals_held():
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
def _signals_held() -> Iterator[None]:
    """Hold back what would interrupt the start of a process: a half-started one says so with a traceback.

    Those that are started meanwhile never get what a terminal sends to all its processes: the one that started them
    ends them. A mask does that. It does not hold back signals here, which another thread may get for this one.
    """
    held: list[int] = []
    names = [name for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names]
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # no other is interrupted
        handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: held.append(number))
    masked = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers[:2]) if masked else set()
    try:
        yield
    finally:
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


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
