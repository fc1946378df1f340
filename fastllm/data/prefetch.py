"""Batches made ahead of their use, by a thread."""

import queue
import threading

from torch import Tensor

from fastllm.data.source import WHOLE, Share, Source, TrainingBatch


class Prefetcher:
    """Gives what a source's next gives, in the same order, and has some of it ready.

    Batches that were made but not handed out do not count: `position` is that of the batches, and can be saved and
    set. The thread starts with the first batch and ends with close().

    Args:
        batches: what to read; nothing else may step through them while this is in use.
        share: of each batch, as for its next.
        depth: batches that are kept ready.
        pin: put them into page-locked memory, out of which a GPU fetches them by itself.

    Example:
        >>> with Prefetcher(batches) as ahead:  # doctest: +SKIP
        ...     tokens, targets, segment_ids = ahead.next()
    """

    def __init__(self, batches: Source, share: Share = WHOLE, depth: int = 2, *, pin: bool = False) -> None:
        if depth < 1:
            raise ValueError(f"Prefetcher: 'depth' must be at least 1, got {depth}")
        self.batches, self.share, self.depth, self.pin = batches, share, depth, pin
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready: queue.Queue[TrainingBatch | BaseException] = queue.Queue(depth)

    @property
    def position(self) -> int:
        """The number of batches handed out."""
        return self.batches.position

    @position.setter
    def position(self, position: int) -> None:
        self.close()
        self.batches.position = position

    def next(self) -> TrainingBatch:
        """Return the next batch; an error that making it raised is raised here."""
        if self._thread is None:
            self._start()
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self.batches.position += 1
        return batch

    def close(self) -> None:
        """End the thread; next() would start another."""
        if self._thread is None:
            return
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)  # it may wait for room
            except queue.Empty:
                continue
        self._thread.join()
        self._thread = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        # Of its own each time: what an earlier thread left behind must not be taken for the next batch.
        self._stop, self._ready = threading.Event(), queue.Queue(self.depth)
        arguments = (self._stop, self._ready, self.batches.position)
        self._thread = threading.Thread(target=self._work, args=arguments, name="fastllm-prefetch", daemon=True)
        self._thread.start()

    def _work(self, stop: threading.Event, ready: queue.Queue, position: int) -> None:
        try:
            while not stop.is_set():
                batch = self.batches.batch(position, self.share)
                ready.put(batch.map(Tensor.pin_memory) if self.pin else batch)
                position += 1
        except BaseException as error:  # for the thread that asks
            ready.put(error)
