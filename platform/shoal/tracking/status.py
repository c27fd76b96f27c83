"""How far a training is: what the process that follows its journal tells whoever shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.tracking.journal import MetricPoint


@dataclass(frozen=True)
class TrainStatus:
    """The progress of a training that lasts.

    Attributes:
        step: that is complete, of `steps`.
        metrics: the latest value of each.
        note: what is done beside steps, in words.
        is_training: whether this attempt has made a step.
        new_points: that were journalled since the status before.
    """

    step: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    is_training: bool = False
    steps_per_epoch: int = 1
    new_points: Sequence[MetricPoint] = ()


Listener = Callable[[TrainStatus], None]


def ignore(status: TrainStatus) -> None:
    """Show nothing."""
