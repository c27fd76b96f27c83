"""The files of one checkpoint as a worker reads them: checked, and each of them once."""

import hashlib
import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, BinaryIO

import torch
from torch import Tensor

from shoal.distributed import dtensor_io
from shoal.distributed.process_group import Collective
from shoal.distributed.shard_index import INDEX, read_index
from shoal.errors import StorageError
from shoal.storage.records import CheckpointState, FileDigest
from shoal.storage.run_folder import CHECKPOINTS, RunFolder
from shoal.training.checkpoint.contents import (
    DATASET_INFO,
    FORMER_DATASET_INFO,
    OPTIMIZER,
    RANDOM,
    WEIGHTS,
    TrainingProgress,
)


class CheckpointFiles:
    """What a worker sees of a checkpoint. A file that was read to check it is kept until it is used."""

    def __init__(self, folder: RunFolder, name: str, files: Mapping[str, FileDigest]) -> None:
        """Take the run's folder, the checkpoint's name, and what its manifest says."""
        self._folder, self.name, self._files = folder, name, files
        self._inside = f"{CHECKPOINTS}/{name}"
        self._kept: dict[str, bytes] = {}

    @property
    def has_shards(self) -> bool:
        return INDEX in self._files

    def problem(self, rank: int = 0, size: int = 1, keeps: bool = True) -> str | None:
        """Return what is wrong with this worker's share of the files, or None.

        Args:
            rank, size: of the worker, and how many share the work: each of them checks the shard that it wrote, and
                rank 0 all files besides.
            keeps: whether the files are used afterwards.
        """
        for file, expected in self._files.items():
            if _owner(file) % size != rank:
                continue
            try:
                data = self._read(file)
            except StorageError:
                raise  # the store is away, which says nothing of the checkpoint
            except OSError as error:
                return f"{file}: {type(error).__name__}: {error}"
            if len(data) != expected.bytes:
                return f"{file} has {len(data)} bytes, not {expected.bytes}"
            if hashlib.sha256(data).hexdigest() != expected.sha256:
                return f"{file} does not match its SHA-256"
            if keeps:
                self._kept[file] = data
        missing = self._required() - self._files.keys()
        return f"{missing.pop()} is missing" if missing else None

    def share(self, collective: Collective) -> None:
        """Send every worker the files that all need and rank 0 has read."""
        needed = {CheckpointState.file, RANDOM, OPTIMIZER, INDEX if self.has_shards else WEIGHTS}
        for file in self._files:
            if file in needed:
                self._kept[file] = collective.broadcast_bytes(self._kept.get(file, b""))

    def state(self) -> CheckpointState:
        return CheckpointState.parse(self._bytes(CheckpointState.file))

    def progress(self) -> TrainingProgress:
        state = self.state()
        return TrainingProgress(
            **{field.name: getattr(state, field.name) for field in fields(TrainingProgress)}
        )

    def weights(self) -> dict[str, Tensor]:
        from safetensors.torch import load

        return dict(load(self._bytes(WEIGHTS)))

    def optimizer(self) -> dict[str, Any]:
        """Return {"optimizer": state dict}, and what `Snapshot.more` held; of shards without their tensors.

        Shards of earlier versions have nothing besides tensors.
        """
        return _load(self._bytes(OPTIMIZER)) if OPTIMIZER in self._files else {}

    def random(self) -> list[dict[str, Any]]:
        """Return one random state per part of the data."""
        # Earlier versions had them beside the optimizer's state, which is used later.
        file = RANDOM if RANDOM in self._files else OPTIMIZER
        data = self._kept[file] = self._bytes(file)
        return list(_load(data)["random"])

    def shards(self) -> dtensor_io.Shards:
        index = read_index(self._bytes(INDEX), f"{self._folder.uri}/{self._inside}")
        return dtensor_io.Shards(index, self._open)

    def _bytes(self, file: str) -> bytes:
        """Return a file's bytes and forget them; it is read where it was not kept."""
        kept = self._kept.pop(file, None)
        return self._read(file) if kept is None else kept

    def _open(self, file: str) -> AbstractContextManager[BinaryIO]:
        """Open a file that was kept, or another worker's, of which this one may need little."""
        if file in self._kept:
            return io.BytesIO(self._kept.pop(file))
        return self._folder.open(f"{self._inside}/{file}")

    def _read(self, file: str) -> bytes:
        return self._folder.read(f"{self._inside}/{file}")

    def _required(self) -> set[str]:
        info = FORMER_DATASET_INFO if FORMER_DATASET_INFO in self._files else DATASET_INFO
        tensors = {INDEX} if self.has_shards else {WEIGHTS, OPTIMIZER}
        random = RANDOM if RANDOM in self._files else OPTIMIZER
        return {CheckpointState.file, info, random} | tensors


def _owner(file: str) -> int:
    """Return the rank of the worker that wrote a shard; 0 for every other file."""
    found = re.fullmatch(dtensor_io.SHARD, file)
    return int(found[1]) if found else 0


def _load(data: bytes) -> dict[str, Any]:
    return dict(torch.load(io.BytesIO(data), weights_only=True))
