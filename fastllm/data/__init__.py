"""Text in, batches of token ids out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastllm.data.batches import Batch, Batches, windows
    from fastllm.data.dataset import Split, TokenData
    from fastllm.data.parallel.batches import PairBatch, ParallelBatches, pair_batches
    from fastllm.data.parallel.dataset import ParallelData, ParallelSplit
    from fastllm.data.parallel.preparation import ParallelOptions, prepare_parallel
    from fastllm.data.parallel.sources import Corpora, FilePairs, LinePairs, PairsOf, Tagged
    from fastllm.data.prefetch import Prefetcher
    from fastllm.data.preparation import PrepareOptions, prepare, sources_of
    from fastllm.data.shakespeare import shakespeare_text
    from fastllm.data.sources import FileSource, TextSource

__all__ = [
    "Batch", "Batches", "Corpora", "FilePairs", "FileSource", "LinePairs", "PairBatch", "PairsOf", "ParallelBatches",
    "ParallelData", "ParallelOptions", "ParallelSplit", "Prefetcher", "PrepareOptions", "Split", "Tagged", "TextSource",
    "TokenData", "pair_batches", "prepare", "prepare_parallel", "shakespeare_text", "sources_of", "windows",
]  # fmt: skip

_MODULES = {
    "batches": ("Batch", "Batches", "windows"),
    "dataset": ("Split", "TokenData"),
    "parallel.batches": ("PairBatch", "ParallelBatches", "pair_batches"),
    "parallel.dataset": ("ParallelData", "ParallelSplit"),
    "parallel.preparation": ("ParallelOptions", "prepare_parallel"),
    "parallel.sources": ("Corpora", "FilePairs", "LinePairs", "PairsOf", "Tagged"),
    "prefetch": ("Prefetcher",),
    "preparation": ("PrepareOptions", "prepare", "sources_of"),
    "shakespeare": ("shakespeare_text",),
    "sources": ("FileSource", "TextSource"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: processes that only tokenize need no torch, which takes seconds to load."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"fastllm.data.{module}"), name)
    raise AttributeError(f"module 'fastllm.data' has no attribute '{name}'")
