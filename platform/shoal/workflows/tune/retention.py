"""Which trials keep their checkpoints: the best `tune.keep`, and all that may still be among them."""

from shoal.storage.run_folder import CHECKPOINTS
from shoal.tune.trials import losers
from shoal.workflows.tune.state import SweepState


def free_checkpoints(state: SweepState) -> None:
    """Delete the checkpoints of the trials that cannot be among the best any more."""
    tune = state.config.tune
    lost = losers(state.rows(), state.ranking(), tune.repeat, tune.keep)
    for trial, progress in state.progress.items():
        if trial.number in lost and not progress.is_freed:
            progress.folder.delete(CHECKPOINTS)
            progress.is_freed = True
