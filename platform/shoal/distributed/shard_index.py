"""Reads the index of a sharded checkpoint, which says which file holds which part of which tensor.

torch.distributed.checkpoint (DCP) writes it with pickle, whose loader calls whatever a file names. This one builds the
few types that an index of tensors is made of, and refuses all others (Python's docs, pickle, "Restricting Globals").
"""

import importlib
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from shoal.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

OpenFile = Callable[[str], AbstractContextManager[BinaryIO]]

INDEX = ".metadata"
# Not BytesStorageMetadata: DCP loads such an entry with the unrestricted pickle.
TYPES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in TYPES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which an index of tensors does not hold")
        return getattr(importlib.import_module(module), name)


def read_index(data: bytes, folder: str) -> "Metadata":
    """Return the index that DCP wrote.

    Args:
        folder: where it is, for the message.

    Raises:
        CheckpointError: the file is damaged, or names something that an index of tensors does not hold.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()  # type: ignore[no-any-return]
    except Exception as error:
        raise CheckpointError(
            f"'{folder}/{INDEX}' is no index of a sharded checkpoint ({error}): delete the folder '{folder}' to go on "
            "from an earlier checkpoint"
        ) from None


def reader(index: "Metadata", open_file: OpenFile) -> "FileSystemReader":
    """Return DCP's reader of the files that `open_file` opens by their names."""
    from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Files(FileSystem):
        def create_stream(self, path: str | PathLike[str], mode: str) -> AbstractContextManager[Any]:  # type: ignore[override]
            return open_file(Path(path).name)

    class Reader(FileSystemReader):
        def _slice_file(self, file: BinaryIO, part: Any) -> BinaryIO:
            """Read a part at once: torch.load reads it in dozens of pieces, each a request to an object store."""
            file.seek(part.offset)
            return io.BytesIO(file.read(part.length))

        def read_metadata(self, *_: Any, **__: Any) -> "Metadata":
            index.storage_meta = index.storage_meta or StorageMeta()
            index.storage_meta.load_id = self.load_id
            return index

    made = Reader("")
    made.fs = Files()
    return made
