"""The checkpoints of a run folder: complete or absent, the last few and the best kept.

A checkpoint that `save` has returned from survives a power cut; older ones are deleted only then.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shoal.distributed import dtensor_io
from shoal.distributed.process_group import Collective, SingleProcess
from shoal.errors import CheckpointError, StorageError
from shoal.storage.failures import explained
from shoal.storage.records import CheckpointState, FileDigest, Manifest
from shoal.storage.run_folder import CHECKPOINTS, RunFolder
from shoal.training.checkpoint.contents import (
    DATASET_INFO,
    OPTIMIZER,
    RANDOM,
    WEIGHTS,
    Snapshot,
    checkpoint_name,
    checkpoint_step,
    keyed_tensors,
)
from shoal.training.checkpoint.files import CheckpointFiles
from shoal.training.optimizer_state import without_tensors

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
            OPTIMIZER: _torch_bytes(snapshot.more | {"optimizer": snapshot.optimizer}),
            **_about(snapshot, metadata, dataset_info),
        }
        name = checkpoint_name(snapshot.progress.step)
        with self._part(name) as part:
            self._publish(part, name, _write(part, files))
        self._retain(snapshot)
        return name

    def add_weights(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Add whole weights to a checkpoint of shards; the manifest that lists them follows them."""
        name, data = checkpoint_name(step), _weights_bytes(weights)
        self._folder.write(f"{CHECKPOINTS}/{name}/{WEIGHTS}", data)
        files = self._manifest(name).files | {WEIGHTS: _digest(data)}
        self._folder.save(Manifest(files=files), inside=f"{CHECKPOINTS}/{name}")

    def remove_parts(self) -> None:
        """Remove what processes that were killed had written of a checkpoint."""
        self._folder.clear_scratch(CHECKPOINTS)

    def names(self) -> list[str]:
        """Return the complete checkpoints, oldest first."""
        return [name for name, is_complete in self._listed().items() if is_complete]

    @property
    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None: there is none.

        Raises:
            StorageError: the store is away.
        """
        names = self.names()
        return checkpoint_step(names[-1]) if names else None

    def _listed(self) -> dict[str, bool]:
        """Return whether each is complete, oldest first; what is not is of an upload or a deletion that was killed."""
        found = [file.split("/") for file in self._folder.files(CHECKPOINTS)]
        complete = {file[0] for file in found if file[1:] == [Manifest.file]}
        steps = {file[0]: step for file in found if (step := checkpoint_step(file[0])) is not None}
        return {name: name in complete for name in sorted(steps, key=steps.__getitem__)}

    def latest(self) -> tuple[str | None, list[str]]:
        """Return the newest sound checkpoint, and a complaint for each corrupt one that is newer.

        Raises:
            CheckpointError: there are checkpoints and all of them are corrupt.
        """
        found, complaints = self._newest_sound(SingleProcess(), keeps=False)
        return (found.name if found else None), complaints

    def open_latest(self, collective: Collective) -> CheckpointFiles | None:
        """Return the newest sound checkpoint on every worker; all call it, and each file is read by one of them.

        Raises:
            CheckpointError: there are checkpoints and all of them are corrupt.
        """
        found, _ = self._newest_sound(collective, keeps=True)
        if found:
            found.share(collective)
        return found

    def open_on_all(self, name: str, collective: Collective) -> tuple[CheckpointFiles | None, str | None]:
        """Return a checkpoint on every worker, or what is wrong with it; all call it."""
        found, problem = self._checked(name, collective, keeps=True)
        if found:
            found.share(collective)
        return found, problem

    def _checked(
        self, name: str, collective: Collective, keeps: bool
    ) -> tuple[CheckpointFiles | None, str | None]:
        """Let each worker check its share of a checkpoint's files; return it if it is sound, or what is wrong."""
        manifest, problem = collective.broadcast(
            self._manifest_or_problem(name) if collective.rank == 0 else None
        )
        if manifest is None:
            return None, problem
        found = self._opened(name, manifest)
        problems = collective.gather(found.problem(collective.rank, collective.size, keeps))
        problem = next(filter(None, problems), None)
        return (None, problem) if problem else (found, None)

    def open(self, name: str) -> CheckpointFiles:
        return self._opened(name, self._manifest(name))

    def _newest_sound(self, collective: Collective, keeps: bool) -> tuple[CheckpointFiles | None, list[str]]:
        """Return the newest checkpoint that is sound, and what is wrong with those after it."""
        complaints: list[str] = []
        names = collective.broadcast(self.names() if collective.rank == 0 else None)
        for name in reversed(names):
            found, problem = self._checked(name, collective, keeps)
            if found is not None:
                return found, complaints
            complaints.append(f"checkpoint '{self._folder.uri}/{CHECKPOINTS}/{name}' is corrupt ({problem})")
        if names:
            raise CheckpointError(
                f"{complaints[0]} and no earlier one is sound: delete '{self._folder.uri}' to start over, "
                "or set if_exists=new"
            )
        return None, complaints

    def best(self) -> str | None:
        """Return the checkpoint of the best evaluation, or None when nothing was evaluated."""
        names = self.names()
        name = _best_name(self.state(names[-1]).best) if names else None
        return name if name in names else None

    def state(self, name: str) -> CheckpointState:
        return CheckpointState.parse(self._read(name, CheckpointState.file))

    @contextmanager
    def _part(self, name: str) -> Iterator[Path]:
        """Yield a folder that can become a checkpoint; before it, make room.

        One checkpoint is written at a time: scratch that is there is of a process that was killed.
        """
        with explained(f"{self._folder.uri}/{CHECKPOINTS}"):
            self.remove_parts()
            with self._folder.scratch(f"{CHECKPOINTS}/{name}") as part:
                yield part

    def _publish(self, part: Path, name: str, files: dict[str, FileDigest]) -> None:
        (part / Manifest.file).write_bytes(Manifest(files=files).to_bytes())
        self._folder.put_folder(part, f"{CHECKPOINTS}/{name}", last=Manifest.file)

    def _manifest(self, name: str) -> Manifest:
        return Manifest.parse(self._read(name, Manifest.file))

    def _read(self, name: str, file: str) -> bytes:
        return self._folder.read(f"{CHECKPOINTS}/{name}/{file}")

    def _opened(self, name: str, manifest: Manifest) -> CheckpointFiles:
        return CheckpointFiles(self._folder, name, manifest.files)

    def _manifest_or_problem(self, name: str) -> tuple[Manifest | None, str | None]:
        try:
            return self._manifest(name), None
        except StorageError:
            raise  # the store is away, which says nothing of the checkpoint
        except (OSError, ValueError) as error:
            return None, f"{Manifest.file}: {error}"

    def _retain(self, saved: Snapshot) -> None:
        """Keep the last ones and the best; later ones than `saved` were corrupt, or it would not have come after.

        `saved` is on the disk by now, so that no power cut leaves less than there was before.
        """
        last, best = checkpoint_name(saved.progress.step), _best_name(saved.progress.best)
        listed = self._listed()
        names = [name for name, is_complete in listed.items() if is_complete]
        sound = names[: names.index(last) + 1]
        keep = {*sound[-self._keep :], best if best in sound else None}
        for name in listed:
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
        is_first, is_shared = self._rank == 0, self._folder.is_local
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(f"{self._folder.uri}/{CHECKPOINTS}"))

            def make_part() -> Path | None:
                if is_first and not is_shared:  # before a shard of an earlier one is written over
                    self._folder.delete(f"{CHECKPOINTS}/{name}/{Manifest.file}")
                return stack.enter_context(self._part(name)) if is_first or not is_shared else None

            parts = self._together(make_part)
            part = parts[self._rank] or parts[0]
            assert part is not None
            dtensor_io.write(keyed_tensors(snapshot.weights, snapshot.optimizer["state"]), part, self._group)

            def hand_in() -> dict[str, FileDigest]:
                described = {path.name: _file_digest(path) for path in dtensor_io.files_of(self._rank, part)}
                if not (is_first or is_shared):
                    self._folder.put_folder(part, f"{CHECKPOINTS}/{name}", last=None)
                return described

            described = self._together(hand_in)
            if is_first:
                more = snapshot.more | {"optimizer": without_tensors(snapshot.optimizer)}
                about = _about(snapshot, metadata, dataset_info)
                rest = _write(part, {OPTIMIZER: _torch_bytes(more), **about})
                files = {file: digest for own in [*described, rest] for file, digest in own.items()}
                self._publish(part, name, files)
        if is_first:
            self._retain(snapshot)
        return name

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


def _best_name(best: Mapping[str, float]) -> str | None:
    """Return the name of the checkpoint of the best evaluation, which need not be there."""
    step = best.get("best/step")
    return checkpoint_name(int(step)) if step is not None else None


def _about(snapshot: Snapshot, metadata: Mapping[str, Any], dataset_info: bytes) -> dict[str, bytes]:
    """Return the files that are the same for whole tensors and shards."""
    state = CheckpointState(**asdict(snapshot.progress), **metadata)
    return {
        RANDOM: _torch_bytes({"random": snapshot.random}),
        CheckpointState.file: state.to_bytes(),
        DATASET_INFO: dataset_info,
    }


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
    return FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _file_digest(path: Path) -> FileDigest:
    with path.open("rb") as stream:
        return FileDigest(bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
