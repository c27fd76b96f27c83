"""Reads the index of a sharded checkpoint, which says which file holds which part of which tensor.

torch.distributed.checkpoint (DCP) writes it with pickle, whose loader calls whatever a file names. This one builds the
few types that an index of tensors is made of, and refuses all others (Python's docs, pickle, "Restricting Globals").
"""

import importlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shoal.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

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


def read_index(folder: Path) -> "Metadata":
    """Return the index of a folder that DCP wrote.

    Raises:
        CheckpointError: the file is damaged, or names something that an index of tensors does not hold.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()  # type: ignore[no-any-return]
    except OSError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"'{path}' is no index of a sharded checkpoint ({error}): delete the folder '{folder}' to go on from an "
            "earlier checkpoint"
        ) from None


def reader(folder: Path) -> "FileSystemReader":
    """Return DCP's reader of a folder, with the index that `read_index` returns.

    Raises:
        CheckpointError: as `read_index`.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    index = read_index(folder)

    class Reader(FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> "Metadata":
            index.storage_meta = index.storage_meta or StorageMeta()
            index.storage_meta.load_id = self.load_id
            return index

    return Reader(folder)
