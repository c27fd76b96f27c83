"""Checkpoints: complete or absent, written in the background, the last few and the best kept.

A checkpoint is a folder `checkpoints/step-NNNNNN` with weights (safetensors), optimiser and random state, the
position in the data, the best metrics and the transform. Its manifest lists every file's size and SHA-256.

Where each worker holds a part of the tensors, each writes its own (`shoal.shards`), and only the checkpoint that
training ends with has whole weights besides. Either kind is restored into any division of the model.
"""

import hashlib
import io
import json
import random
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from shoal import shards
from shoal.config import Section
from shoal.ema import Average
from shoal.errors import CheckpointError
from shoal.runfolder import CHECKPOINTS, RunFolder

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.pt", "state.json", "manifest.json"
PREPARED = "prepared.json"

# What a tensor's key begins with among the shards.
MODEL_KEY, OPTIMIZER_KEY = "model", "optimizer"

Found = TypeVar("Found")

# By default a checkpoint follows another after a second, and after so many times the seconds that it took.
SAVE_EVERY_S, SAVE_EVERY_TIMES = 1.0, 20.0


class CheckpointConfig(Section):
    every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints; null: the first at once, then every second or so",
    )
    keep: int = Field(2, ge=1, description="how many of the latest are kept, besides the best")


@dataclass
class Progress:
    """Where training stands: all that the next step depends on besides weights and optimiser.

    The position in the data is the step: batch `step % steps_per_epoch` of epoch `step // steps_per_epoch`.
    """

    step: int = 0
    samples: int = 0
    best: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    reached_target: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, copied to the host so that training may go on.

    Attributes:
        weights: what the run is for: the averaged ones where an average is kept.
        optimizer: its state.
        progress: where training stands.
        random: random states, one per worker.
        more: what else the next step depends on, by name: `scaler`, and `trained`, the weights behind an average.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: Progress
    random: list[dict[str, Any]]
    more: dict[str, Any] = field(default_factory=dict)


def random_state() -> dict[str, Any]:
    """Return this process's random states: torch, CUDA, NumPy, Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


def snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    random: list[dict[str, Any]],
    scaler: GradScaler | None = None,
    average: Average | None = None,
    spare: Snapshot | None = None,
) -> Snapshot:
    """Copy weights and optimiser state to the host.

    Args:
        spare: a snapshot that nobody needs any more: its memory is used again, which takes a fifth of the time.
    """
    old = spare or Snapshot({}, {}, progress, [])
    weights = _to_host(dict((average or model).state_dict()), old.weights)
    more: dict[str, Any] = {}
    if average:
        more["trained"] = _to_host(dict(model.state_dict()), old.more.get("trained"))
    if scaler and scaler.is_enabled():
        more["scaler"] = scaler.state_dict()
    # A copy, since the caller's goes on counting while this one is being written.
    frozen = Progress(**{**asdict(progress)})
    return Snapshot(weights, _to_host(optimizer.state_dict(), old.optimizer), frozen, random, more)


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, folder: RunFolder, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, snapshot: Snapshot, facts: Mapping[str, Any], prepared: bytes) -> str:
        """Write a checkpoint complete or not at all, then drop what retention no longer holds.

        Returns:
            its name.
        """
        files = {
            WEIGHTS: _weights_bytes(snapshot.weights),
            OPTIMIZER: _torch_bytes(
                snapshot.more | {"optimizer": snapshot.optimizer, "random": snapshot.random}
            ),
            **_about(snapshot, facts, prepared),
        }
        part, name = self._make_part(), _name(snapshot.progress.step)
        self._publish(part, name, _write(part, files))
        return name

    def add_weights(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Add whole weights to a checkpoint of shards; the manifest that lists them follows them."""
        name, data = _name(step), _weights_bytes(weights)
        self._folder.write(f"{CHECKPOINTS}/{name}/{WEIGHTS}", data)
        manifest = json.loads(self._read(name, MANIFEST)) | {WEIGHTS: _described(data)}
        self._folder.write(f"{CHECKPOINTS}/{name}/{MANIFEST}", json.dumps(manifest).encode())

    def names(self) -> list[str]:
        """Return the complete checkpoints, oldest first."""
        names = [name for name in self._folder.names(CHECKPOINTS) if name.startswith("step-")]
        whole = [name for name in names if self._folder.exists(f"{CHECKPOINTS}/{name}/{MANIFEST}")]
        return sorted(whole, key=lambda name: int(name.removeprefix("step-")))

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
        step = self.state(names[-1])["best"].get("best/step") if names else None
        name = _name(int(step)) if step is not None else None
        return name if name in names else None

    def state(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self._read(name, STATE)))

    def progress(self, name: str) -> Progress:
        state = self.state(name)
        return Progress(**{key: state[key] for key in Progress.__dataclass_fields__})

    def prepared(self, name: str) -> bytes:
        return self._read(name, PREPARED)

    def weights(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load

        return dict(load(self._read(name, WEIGHTS)))

    def optimizer(self, name: str) -> dict[str, Any]:
        """Return {"optimizer": state dict, "random": one state per worker}, and what `Snapshot.more` held."""
        return dict(torch.load(io.BytesIO(self._read(name, OPTIMIZER)), weights_only=True))

    def has_shards(self, name: str) -> bool:
        return shards.INDEX in json.loads(self._read(name, MANIFEST))

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

    def _publish(self, part: Path, name: str, manifest: Mapping[str, Any]) -> None:
        (part / MANIFEST).write_text(json.dumps(manifest))
        self._folder.put_folder(part, f"{CHECKPOINTS}/{name}", last=MANIFEST)
        self._retain(name)

    def _read(self, name: str, file: str) -> bytes:
        return self._folder.read(f"{CHECKPOINTS}/{name}/{file}")

    def _problem(self, name: str) -> str | None:
        try:
            manifest = json.loads(self._read(name, MANIFEST))
            for file, facts in manifest.items():
                data = self._read(name, file)
                if len(data) != facts["bytes"]:
                    return f"{file} has {len(data)} bytes, not {facts['bytes']}"
                if _sha256(data) != facts["sha256"]:
                    return f"{file} does not match its SHA-256"
            tensors = shards.INDEX if shards.INDEX in manifest else WEIGHTS
            missing = {tensors, OPTIMIZER, STATE, PREPARED} - set(manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return f"{missing.pop()} is missing" if missing else None

    def _retain(self, saved: str) -> None:
        """Keep the last ones and the best; later ones than `saved` were corrupt, or it would not have come after."""
        for leftover in self._folder.names(CHECKPOINTS):
            if leftover.startswith(".part-"):
                self._folder.delete(f"{CHECKPOINTS}/{leftover}")
        names = self.names()
        sound = names[: names.index(saved) + 1]
        keep = set(sound[-self._keep :]) | {self._best(sound)}
        for name in names:
            if name not in keep:
                # The manifest goes first: what remains of an interrupted deletion is no checkpoint.
                self._folder.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")
                self._folder.delete(f"{CHECKPOINTS}/{name}")


class ShardedStore(CheckpointStore):
    """The same where each worker holds a part of the tensors: all save together, and each writes its own.

    They talk over a process group of their own, since the default one is the training's.
    """

    def __init__(self, folder: RunFolder, keep: int = 2) -> None:
        super().__init__(folder, keep)
        self._rank, self._group = dist.get_rank(), dist.new_group(backend="gloo")

    def save(self, snapshot: Snapshot, facts: Mapping[str, Any], prepared: bytes) -> str:
        """Write a checkpoint complete or not at all; what fails on one worker is raised on all."""
        name, is_first, is_shared = _name(snapshot.progress.step), self._rank == 0, self._folder.is_local
        parts = self._together(lambda: self._make_part() if is_first or not is_shared else None)
        part = parts[self._rank] or parts[0]
        assert part is not None
        shards.write(_keyed(snapshot.weights, snapshot.optimizer["state"]), part, self._group)

        def hand_in() -> dict[str, Any]:
            described = {path.name: _described_file(path) for path in shards.files_of(self._rank, part)}
            if not (is_first or is_shared):
                self._folder.put_folder(part, f"{CHECKPOINTS}/{name}")
            return described

        described = self._together(hand_in)
        if is_first:
            random = _torch_bytes({"random": snapshot.random})
            rest = _write(part, {OPTIMIZER: random, **_about(snapshot, facts, prepared)})
            self._publish(
                part, name, {file: facts for own in [*described, rest] for file, facts in own.items()}
            )
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


class BackgroundSaver:
    """Saves in a thread, one checkpoint in flight; a failure shows at the next call.

    The best so far may wait, copied, for the next checkpoint: a later one that refers to it is written after it, and
    an earlier one from which training starts again leads to it again.
    """

    def __init__(self, store: CheckpointStore, facts: Mapping[str, Any], prepared: bytes) -> None:
        self._store, self._facts, self._prepared = store, facts, prepared
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._best: Snapshot | None = None
        self._spare: Snapshot | None = None
        self._due_s = time.monotonic()  # the first at once: there is something to fall back on
        self.blocked_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() >= self._due_s

    def take_spare(self) -> Snapshot | None:
        """Give away the last snapshot that was written, for its memory."""
        spare, self._spare = self._spare, None
        return spare

    def hold(self, best: Snapshot) -> None:
        """Write a snapshot together with the next one, unless there is a better one by then."""
        self._best = best

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, and before it the best one that still waits."""
        self.wait()
        is_best = snapshot.progress.best.get("best/step") == snapshot.progress.step
        held, self._best = self._best, None
        snapshots = [snapshot] if held is None or is_best else [held, snapshot]
        self._due_s = float("inf")
        self._thread = threading.Thread(target=self._work, args=(snapshots,), name="shoal-checkpoint")
        self._thread.start()

    def drop(self) -> None:
        """Forget the snapshot that waits."""
        self._best = None

    def close(self) -> None:
        """Write what still waits, and wait for it."""
        if self._best is not None:
            self.save(self._best)
        self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint in flight, and raise what went wrong with it."""
        since = time.perf_counter()
        if self._thread:
            self._thread.join()
            self._thread = None
        self.blocked_s += time.perf_counter() - since
        if self._error:
            error, self._error = self._error, None
            raise error

    def _work(self, snapshots: Sequence[Snapshot]) -> None:
        since = time.monotonic()
        try:
            for snapshot in snapshots:
                self._store.save(snapshot, self._facts, self._prepared)
            self._spare = snapshots[-1]
        except BaseException as error:
            self._error = error
        ended = time.monotonic()
        self._due_s = ended + max(SAVE_EVERY_S, SAVE_EVERY_TIMES * (ended - since))


def restore(
    store: CheckpointStore,
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scaler: GradScaler | None = None,
    average: Average | None = None,
) -> Progress:
    """Load weights and optimiser state in place, however they were and are divided, and return the progress.

    Groups and hyperparameters of the optimiser stay as they are.

    Without an optimiser the model gets the weights that the run is for. A checkpoint made without scaler or average
    is good: they begin anew.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    load = _load_shards if store.has_shards(name) else _load_whole
    state = load(store, name, model, optimizer)
    if optimizer is not None:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _restore_more({} if store.has_shards(name) else store.optimizer(name), model, scaler, average)
    return store.progress(name)


def _restore_more(
    states: Mapping[str, Any], model: nn.Module, scaler: GradScaler | None, average: Average | None
) -> None:
    """Go on with scaler and average; the weights that were loaded are the average, where one is kept."""
    if scaler and "scaler" in states:
        scaler.load_state_dict(states["scaler"])
    if average:
        average.restart()
    if "trained" in states:
        model.load_state_dict(states["trained"])


def _load_whole(
    store: CheckpointStore, name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> dict[int, dict[str, Any]]:
    """Load whole weights, and return this worker's part of the optimiser's state by the number of its parameter."""
    own = model.state_dict()
    weights = store.weights(name)
    try:
        model.load_state_dict(
            {key: shards.cut_like(weights[key], own.get(key, weights[key])) for key in weights}
        )
    except RuntimeError as error:
        raise _other_model(name, str(error).splitlines()[-1].strip()) from None
    if optimizer is None:
        return {}
    state, parameters = store.optimizer(name)["optimizer"]["state"], _parameters(optimizer)
    return {
        number: {
            key: shards.cut_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for number, values in state.items()
    }


def _load_shards(
    store: CheckpointStore, name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> dict[int, dict[str, Tensor]]:
    """Load weights from all workers' shards, and return the optimiser's state like `_load_whole`."""
    with store.on_disk(name) as folder:
        saved = shards.contents(folder)
        wanted = _keyed(model.state_dict(), {})
        own = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
        its = {key: tuple(size) for key, (size, _) in saved.items() if key.startswith(f"{MODEL_KEY}/")}
        for key in sorted(own.keys() | its.keys()):
            if own.get(key) != its.get(key):
                raise _other_model(name, f"{key} has shape {its.get(key)} there, {own.get(key)} here")
        state = _empty_state(saved, [] if optimizer is None else _parameters(optimizer))
        shards.read(wanted | _keyed({}, state), folder)
    return state


def _empty_state(
    saved: Mapping[str, tuple[torch.Size, torch.dtype]], parameters: Sequence[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Return tensors for the saved state of each parameter, divided as it is where they have its shape."""
    state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, (size, dtype) in saved.items():
        kind, _, rest = key.partition("/")
        if kind == OPTIMIZER_KEY and parameters:
            number, _, of_state = rest.partition("/")
            parameter = parameters[int(number)].detach()
            like = size == parameter.shape
            state[int(number)][of_state] = (
                torch.zeros_like(parameter, dtype=dtype) if like else torch.zeros(size, dtype=dtype)
            )
    return state


def _keyed(weights: Mapping[str, Tensor], state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return tensors by their keys among the shards; parameters of an optimiser go by their number."""
    return {f"{MODEL_KEY}/{name}": tensor for name, tensor in weights.items()} | {
        f"{OPTIMIZER_KEY}/{number}/{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters in the order of their numbers in a state dict, the same for every division."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _other_model(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint '{name}' is of another model ({reason}): resume with the model it was made with"
    )


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _to_host(value: Any, spare: Any = None) -> Any:
    """Copy all tensors of a tree, into those that lie at the same places of a spare one where they fit."""
    if isinstance(value, Tensor):
        source = value.detach()
        if _fits(spare, source):
            return spare.copy_(source)
        return source.to("cpu", copy=True)
    if isinstance(value, dict):
        old = spare if isinstance(spare, dict) else {}
        return {key: _to_host(inner, old.get(key)) for key, inner in value.items()}
    if isinstance(value, list):
        olds = spare if isinstance(spare, list) and len(spare) == len(value) else [None] * len(value)
        return [_to_host(inner, old) for inner, old in zip(value, olds, strict=True)]
    return value


def _fits(spare: Any, source: Tensor) -> bool:
    """Whether a tensor on the host can take another's numbers as they are."""
    return (
        type(spare) is type(source)
        and not shards.is_shard(source)
        and (spare.shape, spare.dtype, spare.stride()) == (source.shape, source.dtype, source.stride())
    )


def _about(snapshot: Snapshot, facts: Mapping[str, Any], prepared: bytes) -> dict[str, bytes]:
    """Return the files that are the same for whole tensors and shards."""
    return {STATE: json.dumps({**asdict(snapshot.progress), **facts}).encode(), PREPARED: prepared}


def _write(folder: Path, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Write files and return what a manifest says of them."""
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return {file: _described(data) for file, data in files.items()}


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


def _described(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": _sha256(data)}


def _described_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
