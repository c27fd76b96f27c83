"""Which weights are the result of a training: the best ones by a metric of the validation split, or the last ones."""

import logging

from shoal.training.checkpoint.contents import TrainingProgress, checkpoint_name
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.loop import TrainingLoop

logger = logging.getLogger(__name__)


def select_weights(loop: TrainingLoop, store: CheckpointStore, progress: TrainingProgress) -> int:
    """Load the weights that `train.select` asks for into the model, on all workers; return the step they are of.

    The best checkpoint is complete by now. Where it is corrupt, the last weights are the result, with a warning.
    """
    step, collective = int(progress.best.get("best/step", progress.step)), loop.collective
    if loop.config.select == "last" or step == progress.step:
        return progress.step
    checkpoint, problem = store.open_on_all(checkpoint_name(step), collective)
    if checkpoint is None:
        if collective.rank == 0:
            logger.warning(
                "the best weights, of step %d, cannot be read (%s): the result is the last ones, of step %d",
                step,
                problem,
                progress.step,
            )
        return progress.step
    restore(checkpoint, loop.model, optimizer=None)
    if loop.ema:
        loop.ema.restart()
    return step
