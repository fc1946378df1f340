"""Tensors of several processes in one folder: torch.distributed.checkpoint, read without trusting its pickle.

Each process writes its parts; what was written by some number of processes can be read by any other. torch's module
takes half a second to import, so this one is imported where there are several processes.
"""

import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from fastllm.errors import UserError
from fastllm.train.checkpoint import PARTS

# All that the description of tensors in a folder is made of. BytesStorageMetadata is missing on purpose: what it
# describes is unpickled by torch without a check.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        metadata = _Unpickler(io.BytesIO((Path(self.path) / PARTS).read_bytes())).load()
        metadata.storage_meta = metadata.storage_meta or dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write every process's parts of the tensors; all must call it.

    Raises:
        OSError: some process could not.
    """
    try:
        with _quiet():
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:  # a BaseException, which nothing else here would catch
        raise OSError(0, f"{next(iter(error.failures.values()))[0]}".splitlines()[0]) from error


def load(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill the tensors, sharded or not, in place with what save wrote; all processes must call it.

    Raises:
        UserError: the folder's description is damaged or holds something else than tensors.
    """
    reader = _Reader(folder)
    try:
        reader.read_metadata()  # dcp.load would not say what was wrong with it
    except Exception as error:  # unpickling damaged bytes may raise nearly anything
        raise UserError(f"{folder / PARTS} is damaged, or does not describe tensors: {error}") from error
    with _quiet():
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warning that a single process saves alone, which is intended here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
