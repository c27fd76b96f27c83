"""What a checkpoint holds: names of its files, the state of training, a copy of it on the host."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from shoal import devices
from shoal.config.schema import Section
from shoal.distributed import dtensor_io
from shoal.training.ema import EMA
from shoal.training.optimizer_state import state_by_number

WEIGHTS, OPTIMIZER, RANDOM = "model.safetensors", "optimizer.pt", "random.pt"
DATASET_INFO = "dataset_info.json"
FORMER_DATASET_INFO = "prepared.json"  # its name in checkpoints of earlier versions

NAME_PREFIX = "step-"

# What a tensor's key begins with among the shards.
MODEL_KEY, OPTIMIZER_KEY = "model", "optimizer"


class CheckpointConfig(Section):
    every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints; null: the first at once, then every second or so, in an object "
        "store every 5 minutes",
    )
    every_s: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        None,
        description="seconds between checkpoints, instead of every_steps; auto: those at which least is lost, "
        "sqrt(2 x seconds of a checkpoint x mtbf_s)",
    )
    mtbf_s: float | None = Field(
        None,
        gt=0,
        description="mean seconds between failures of the job, for every_s=auto and --plan; null: of the run so far",
    )
    keep: int = Field(2, ge=1, description="how many of the latest are kept, besides the best")

    @model_validator(mode="after")
    def _has_one_pace(self) -> "CheckpointConfig":
        if self.every_s is not None and self.every_steps is not None:
            raise ValueError(
                f"checkpoint.every_s={self.every_s} and checkpoint.every_steps={self.every_steps}: a checkpoint is "
                "written after seconds or after steps: leave one of them out"
            )
        return self


@dataclass
class TrainingProgress:
    """Where training stands: all that the next step depends on besides weights and optimizer.

    The position in the data is the step: batch `step % steps_per_epoch` of epoch `step // steps_per_epoch`.

    Attributes:
        to_beat, stalled: of early stopping: the value to be improved on, and the evaluations since it was reached.
        ended_by: what ended training before its last step, besides a target: early_stopping or callback.
    """

    step: int = 0
    samples: int = 0
    best: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    reached_target: bool = False
    seconds: float = 0.0
    to_beat: float | None = None
    stalled: int = 0
    ended_by: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether training ends before its last step."""
        return self.reached_target or self.ended_by is not None


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, copied to the host so that training may go on.

    Attributes:
        weights: what the run is for: the averaged ones where an average is kept.
        optimizer: its state.
        progress: where training stands.
        random: random states, one per worker.
        more: what else the next step depends on, by name: `scaler`, `trained`, the weights behind an average, and
            `callbacks`, the state of a user's own.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: TrainingProgress
    random: list[dict[str, Any]]
    more: dict[str, Any] = field(default_factory=dict)


def random_state() -> dict[str, Any]:
    """Return this process's random states: torch, its devices, NumPy, Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        **devices.rng_states(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    devices.set_rng_states(state)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


def snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
    random: list[dict[str, Any]],
    scaler: GradScaler | None = None,
    ema: EMA | None = None,
    spare: Snapshot | None = None,
    callbacks: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Copy weights and optimizer state to the host.

    Args:
        callbacks: the state of a user's own, which is not copied.
        spare: a snapshot that nobody needs any more: its memory is used again, which takes a fifth of the time.
    """
    old = spare or Snapshot({}, {}, progress, [])
    weights = _to_host(dict((ema or model).state_dict()), old.weights)
    more: dict[str, Any] = {}
    if ema:
        more["trained"] = _to_host(dict(model.state_dict()), old.more.get("trained"))
    if scaler and scaler.is_enabled():
        more["scaler"] = scaler.state_dict()
    if callbacks:
        more["callbacks"] = callbacks
    # A copy, since the caller's goes on counting while this one is being written.
    frozen = TrainingProgress(**{**asdict(progress)})
    return Snapshot(weights, _to_host(state_by_number(optimizer), old.optimizer), frozen, random, more)


def keyed_tensors(weights: Mapping[str, Tensor], state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return tensors by their keys among the shards; parameters of an optimizer go by their number."""
    return {f"{MODEL_KEY}/{name}": tensor for name, tensor in weights.items()} | {
        f"{OPTIMIZER_KEY}/{number}/{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def checkpoint_name(step: int) -> str:
    """Return the name of a step's checkpoint: its folder, whose names sort by step up to 999,999."""
    return f"{NAME_PREFIX}{step:06d}"


def checkpoint_step(name: str) -> int | None:
    """Return the step of a checkpoint's name, or None where it is no checkpoint's."""
    number = name.removeprefix(NAME_PREFIX)
    return int(number) if name.startswith(NAME_PREFIX) and number.isdecimal() else None


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
    if isinstance(value, tuple):
        return tuple(_to_host(inner) for inner in value)
    if isinstance(value, list):
        olds = spare if isinstance(spare, list) and len(spare) == len(value) else [None] * len(value)
        return [_to_host(inner, old) for inner, old in zip(value, olds, strict=True)]
    return value


def _fits(spare: Any, source: Tensor) -> bool:
    """Whether a tensor on the host can take another's numbers as they are."""
    return (
        type(spare) is type(source)
        and not dtensor_io.is_dtensor(source)
        and (spare.shape, spare.dtype, spare.stride()) == (source.shape, source.dtype, source.stride())
    )
