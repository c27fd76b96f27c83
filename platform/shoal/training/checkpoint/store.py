"""The checkpoints of a run folder: complete or absent, the last few and the best kept."""

import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shoal.distributed import dtensor_io
from shoal.distributed.shard_index import INDEX
from shoal.errors import CheckpointError, StorageError
from shoal.storage.failures import explained
from shoal.storage.records import CheckpointState, FileDigest, Manifest
from shoal.storage.run_folder import CHECKPOINTS, RunFolder
from shoal.training.checkpoint.contents import (
    DATASET_INFO,
    FORMER_DATASET_INFO,
    OPTIMIZER,
    WEIGHTS,
    Snapshot,
    TrainingProgress,
    checkpoint_name,
    checkpoint_step,
    keyed_tensors,
)

Found = TypeVar("Found")


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, folder: RunFolder, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep

    @property
    def is_local(self) -> bool:
        return self._folder.is_local

    @property
    def is_away(self) -> bool:
        """Whether an object store does not answer, and a checkpoint may wait for it."""
        return self._folder.is_away

    def save(self, snapshot: Snapshot, metadata: Mapping[str, Any], dataset_info: bytes) -> str:
        """Write a checkpoint complete or not at all, then drop what retention no longer holds.

        Returns:
            its name.
        """
        files = {
            WEIGHTS: _weights_bytes(snapshot.weights),
            OPTIMIZER: _torch_bytes(
                snapshot.more | {"optimizer": snapshot.optimizer, "random": snapshot.random}
            ),
            **_about(snapshot, metadata, dataset_info),
        }
        name = checkpoint_name(snapshot.progress.step)
        with self._writing() as parts:
            parts.append(self._make_part())
            self._publish(parts[0], name, _write(parts[0], files))
        return name

    def add_weights(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Add whole weights to a checkpoint of shards; the manifest that lists them follows them."""
        name, data = checkpoint_name(step), _weights_bytes(weights)
        self._folder.write(f"{CHECKPOINTS}/{name}/{WEIGHTS}", data)
        files = self._manifest(name).files | {WEIGHTS: _digest(data)}
        self._folder.save(Manifest(files=files), inside=f"{CHECKPOINTS}/{name}")

    def remove_parts(self) -> None:
        """Remove what processes that were killed had written of a checkpoint."""
        for name in self._folder.names(CHECKPOINTS):
            if name.startswith(".part-"):
                self._folder.delete(f"{CHECKPOINTS}/{name}")

    def names(self) -> list[str]:
        """Return the complete checkpoints, oldest first."""
        found = [file.split("/") for file in self._folder.files(CHECKPOINTS)]
        names = [file[0] for file in found if file[1:] == [Manifest.file]]
        complete = {name: step for name in names if (step := checkpoint_step(name)) is not None}
        return sorted(complete, key=complete.__getitem__)

    def latest(self) -> tuple[str | None, list[str]]:
        """Return the newest sound checkpoint, and a complaint for each corrupt one that is newer.

        Raises:
            CheckpointError: there are checkpoints and all of them are corrupt.
        """
        complaints: list[str] = []
        names = self.names()
        for name in reversed(names):
            problem = self._problem(name)
            if problem is None:
                return name, complaints
            complaints.append(f"checkpoint '{self._folder.uri}/{CHECKPOINTS}/{name}' is corrupt ({problem})")
        if names:
            raise CheckpointError(
                f"{complaints[0]} and no earlier one is sound: delete '{self._folder.uri}' to start over, "
                "or set if_exists=new"
            )
        return None, complaints

    def best(self) -> str | None:
        """Return the checkpoint with the lowest validation loss, or None when nothing was evaluated."""
        return self._best(self.names())

    def _best(self, names: list[str]) -> str | None:
        step = self.state(names[-1]).best.get("best/step") if names else None
        name = checkpoint_name(int(step)) if step is not None else None
        return name if name in names else None

    def state(self, name: str) -> CheckpointState:
        return CheckpointState.parse(self._read(name, CheckpointState.file))

    def progress(self, name: str) -> TrainingProgress:
        state = self.state(name)
        return TrainingProgress(
            **{field.name: getattr(state, field.name) for field in fields(TrainingProgress)}
        )

    def weights(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load

        return dict(load(self._read(name, WEIGHTS)))

    def optimizer(self, name: str) -> dict[str, Any]:
        """Return {"optimizer": state dict, "random": one state per worker}, and what `Snapshot.more` held."""
        return dict(torch.load(io.BytesIO(self._read(name, OPTIMIZER)), weights_only=True))

    def has_shards(self, name: str) -> bool:
        return INDEX in self._manifest(name).files

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """Yield a local folder with a checkpoint's files."""
        with tempfile.TemporaryDirectory() as scratch:
            yield self._folder.get_folder(f"{CHECKPOINTS}/{name}", Path(scratch))

    def _make_part(self) -> Path:
        """Make a folder that can become a checkpoint."""
        local = self._folder.local(CHECKPOINTS)
        if local:
            local.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".part-", dir=local))

    @contextmanager
    def _writing(self) -> Iterator[list[Path]]:
        """Explain a failure, and remove the parts that did not become a checkpoint: half of one keeps a disk full."""
        parts: list[Path] = []
        with explained(f"{self._folder.uri}/{CHECKPOINTS}"):
            try:
                yield parts
            finally:
                for part in parts:
                    shutil.rmtree(part, ignore_errors=True)

    def _publish(self, part: Path, name: str, files: dict[str, FileDigest]) -> None:
        (part / Manifest.file).write_bytes(Manifest(files=files).to_bytes())
        self._folder.put_folder(part, f"{CHECKPOINTS}/{name}", last=Manifest.file)
        self._retain(name)

    def _manifest(self, name: str) -> Manifest:
        return Manifest.parse(self._read(name, Manifest.file))

    def _read(self, name: str, file: str) -> bytes:
        return self._folder.read(f"{CHECKPOINTS}/{name}/{file}")

    def _problem(self, name: str) -> str | None:
        """Return what is wrong with a checkpoint, or None."""
        try:
            files = self._manifest(name).files
        except StorageError:
            raise  # the store is away, which says nothing of the checkpoint
        except (OSError, ValueError) as error:
            return f"{Manifest.file}: {error}"
        tensors = INDEX if INDEX in files else WEIGHTS
        info = FORMER_DATASET_INFO if FORMER_DATASET_INFO in files else DATASET_INFO
        for file, expected in files.items():
            if problem := self._file_problem(name, file, expected):
                return problem
        missing = {tensors, OPTIMIZER, CheckpointState.file, info} - files.keys()
        return f"{missing.pop()} is missing" if missing else None

    def _file_problem(self, name: str, file: str, expected: FileDigest) -> str | None:
        try:
            data = self._read(name, file)
        except StorageError:
            raise
        except OSError as error:
            return f"{file}: {type(error).__name__}: {error}"
        if len(data) != expected.bytes:
            return f"{file} has {len(data)} bytes, not {expected.bytes}"
        if _sha256(data) != expected.sha256:
            return f"{file} does not match its SHA-256"
        return None

    def _retain(self, saved: str) -> None:
        """Keep the last ones and the best; later ones than `saved` were corrupt, or it would not have come after."""
        self.remove_parts()
        names = self.names()
        sound = names[: names.index(saved) + 1]
        keep = set(sound[-self._keep :]) | {self._best(sound)}
        for name in names:
            if name not in keep:
                # The manifest goes first: what remains of an interrupted deletion is no checkpoint.
                self._folder.delete(f"{CHECKPOINTS}/{name}/{Manifest.file}")
                self._folder.delete(f"{CHECKPOINTS}/{name}")


class ShardedStore(CheckpointStore):
    """The same where each worker holds a part of the tensors: all save together, and each writes its own.

    They talk over a process group of their own, since the default one is the training's.
    """

    is_away = False  # all save together, so none skips a checkpoint

    def __init__(self, folder: RunFolder, keep: int = 2) -> None:
        super().__init__(folder, keep)
        self._rank, self._group = dist.get_rank(), dist.new_group(backend="gloo")

    def save(self, snapshot: Snapshot, metadata: Mapping[str, Any], dataset_info: bytes) -> str:
        """Write a checkpoint complete or not at all; what fails on one worker is raised on all."""
        name = checkpoint_name(snapshot.progress.step)
        with self._writing() as own:
            self._save(name, snapshot, metadata, dataset_info, own)
        return name

    def _save(
        self,
        name: str,
        snapshot: Snapshot,
        metadata: Mapping[str, Any],
        dataset_info: bytes,
        own: list[Path],
    ) -> None:
        is_first, is_shared = self._rank == 0, self._folder.is_local
        parts = self._together(lambda: self._make_part() if is_first or not is_shared else None)
        part = parts[self._rank] or parts[0]
        assert part is not None
        own += [mine] if (mine := parts[self._rank]) else []
        dtensor_io.write(keyed_tensors(snapshot.weights, snapshot.optimizer["state"]), part, self._group)

        def hand_in() -> dict[str, FileDigest]:
            described = {path.name: _file_digest(path) for path in dtensor_io.files_of(self._rank, part)}
            if not (is_first or is_shared):
                self._folder.put_folder(part, f"{CHECKPOINTS}/{name}")
            return described

        described = self._together(hand_in)
        if is_first:
            random = _torch_bytes({"random": snapshot.random})
            rest = _write(part, {OPTIMIZER: random, **_about(snapshot, metadata, dataset_info)})
            self._publish(
                part, name, {file: digest for files in [*described, rest] for file, digest in files.items()}
            )

    def _together(self, work: Callable[[], Found]) -> list[Found]:
        """Do something on every worker; return what each found, or raise on all what one of them raised."""
        found: Found | None = None
        error: Exception | None = None
        try:
            found = work()
        except Exception as raised:
            error = raised
        all_found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(all_found, (found, error), self._group)
        for _, error in all_found:
            if error is not None:
                raise error
        return [found for found, _ in all_found]


def _about(snapshot: Snapshot, metadata: Mapping[str, Any], dataset_info: bytes) -> dict[str, bytes]:
    """Return the files that are the same for whole tensors and shards."""
    state = CheckpointState(**asdict(snapshot.progress), **metadata)
    return {CheckpointState.file: state.to_bytes(), DATASET_INFO: dataset_info}


def _write(folder: Path, files: Mapping[str, bytes]) -> dict[str, FileDigest]:
    """Write files and return their digests."""
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return {file: _digest(data) for file, data in files.items()}


def _weights_bytes(weights: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # Tied weights are one tensor under two names; safetensors wants them apart.
    apart: dict[int, str] = {}
    out = {}
    for name, tensor in weights.items():
        shared = tensor.untyped_storage().data_ptr() in apart and tensor.numel() > 0
        out[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
        apart[tensor.untyped_storage().data_ptr()] = name
    return bytes(save(out))


def _torch_bytes(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _digest(data: bytes) -> FileDigest:
    return FileDigest(bytes=len(data), sha256=_sha256(data))


def _file_digest(path: Path) -> FileDigest:
    with path.open("rb") as stream:
        return FileDigest(bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
