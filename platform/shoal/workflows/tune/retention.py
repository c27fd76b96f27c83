"""Which trials keep their checkpoints: the best `tune.keep`, and all that may still be among them."""

from collections.abc import Iterable

from shoal.storage.run_folder import CHECKPOINTS
from shoal.workflows.tune.state import SweepState


def free_checkpoints(state: SweepState, numbers: Iterable[int]) -> None:
    """Delete the checkpoints of trials, which cannot be among the best any more; one that was reused has none."""
    for number in numbers:
        trial = state.trials[number]
        if trial.same_as is None:
            state.trial_folder(trial).delete(CHECKPOINTS)
