"""Tensors of which each worker holds a part (torch's DTensor): cut, made whole again, written to files and read.

It knows torch.distributed.checkpoint (DCP), which reads the parts of any number of workers into those of any other.
What the tensors mean, and when they are written, it does not know.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

INDEX = ".metadata"  # which file holds which part of which tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, asked without the 1.4 s that importing them takes."""
    return hasattr(tensor, "device_mesh")


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this worker's part of a whole tensor as `other` is cut, or the tensor if `other` is whole or unlike it."""
    if not is_dtensor(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # A copy: a part that is a view would keep the whole alive.
    return distribute_tensor(
        tensor,
        other.device_mesh,  # type: ignore[attr-defined]
        other.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    ).clone()


def gather_full_tensors(tensors: Mapping[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Return whole copies on the host, or nothing on a worker that does not keep them; all workers call it.

    They are made one after another, so that no device holds more than one of them.
    """
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.detach()
        if is_dtensor(full):
            full = full.full_tensor()  # type: ignore[attr-defined]
        if keeps:
            whole[name] = full.to("cpu", copy=True)
    return whole


def write(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup) -> None:
    """Write each worker's parts of tensors on the host into a folder that all share; all workers call it.

    What every worker holds whole, rank 0 writes. Without a shared folder, each finds its own files (`files_of`) in its
    own.

    Raises:
        Exception: what failed on one of them, on all.
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
    except CheckpointException as failed:  # no Exception, and a traceback of each worker long
        raise next(iter(failed.failures.values()))[0] from None


def files_of(rank: int, folder: Path) -> list[Path]:
    """Return the files of `write` that are a worker's own; the index is rank 0's."""
    return [*folder.glob(f"__{rank}_*"), *(folder.glob(INDEX) if rank == 0 else [])]


def contents(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the whole size and the type of each tensor that was written to a folder."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    kept = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        key: (facts.size, facts.properties.dtype)
        for key, facts in kept.items()
        if isinstance(facts, TensorStorageMetadata)
    }


def read(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, whole or cut in any way, from a folder; each worker reads what it needs, by itself."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is meant
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=True)
