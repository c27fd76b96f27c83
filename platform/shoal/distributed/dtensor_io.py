"""Tensors of which each worker holds a part (torch's DTensor): distributed, gathered, written to files and read.

Depends on torch.distributed.checkpoint (DCP), which reads the parts of any number of workers into those of any other.
Independent of what the tensors mean and when they are written.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from shoal.distributed.shard_index import INDEX, OpenFile, reader

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

SHARD = r"__(\d+)_\d+\.distcp"  # what is not the index, by the rank that wrote it


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, found out without importing the class, which takes 1.4 s."""
    return hasattr(tensor, "device_mesh")


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this worker's part of a full tensor, distributed as `other` is.

    Returns:
        the tensor itself if `other` is not distributed or of another shape.
    """
    if not is_dtensor(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # A copy: a part that is a view would keep the full tensor in memory.
    return distribute_tensor(
        tensor,
        other.device_mesh,  # type: ignore[attr-defined]
        other.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    ).clone()


def gather_full_tensors(tensors: Mapping[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Return full copies on the host, or nothing on a worker that does not keep them; all workers call it.

    They are gathered one after another, so that no device holds more than one of them.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = tensor.detach()
        if is_dtensor(full):
            full = full.full_tensor()  # type: ignore[attr-defined]
        if keeps:
            gathered[name] = full.to("cpu", copy=True)
    return gathered


def write(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup) -> None:
    """Write each worker's parts of tensors on the host into a folder; all workers call it.

    Rank 0 writes the tensors that every worker holds in full. If the workers do not share the folder, each finds its
    own files (`files_of`) in its own.

    Raises:
        Exception: on all workers, what failed on one of them.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(
            dict(tensors),
            storage_writer=FileSystemWriter(folder),
            planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
            process_group=group,
        )
    except CheckpointException as failed:  # not an Exception, and with a traceback of each worker
        raise next(iter(failed.failures.values()))[0] from None


def files_of(rank: int, folder: Path) -> list[Path]:
    """Return the files that one worker wrote with `write`; rank 0 wrote the index."""
    return [*folder.glob(f"__{rank}_*"), *(folder.glob(INDEX) if rank == 0 else [])]


class Shards:
    """The tensors that `write` has written, read by one worker by itself."""

    def __init__(self, index: "Metadata", open_file: OpenFile) -> None:
        """Take the index, and what opens a file by its name: once, where it has parts that this worker needs."""
        self._index, self._open_file = index, open_file

    def contents(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return the full size and the type of each tensor."""
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        return {
            key: (entry.size, entry.properties.dtype)
            for key, entry in self._index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors, full or distributed in any way."""
        from torch.distributed.checkpoint.state_dict_loader import load

        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "torch.distributed is disabled"
            )  # on purpose: each reads by itself
            load(dict(tensors), storage_reader=reader(self._index, self._open_file), no_dist=True)
