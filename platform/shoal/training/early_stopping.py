"""Early stopping: training ends once a validation metric has not improved for some evaluations.

Prechelt 1998, "Early Stopping - But When?". All that it knows is in the progress of the training, which every worker
has alike and a checkpoint keeps.
"""

from pydantic import Field

from shoal.config.schema import Section
from shoal.errors import ConfigError, nearest
from shoal.tasks.metrics import BY_NAME, Directions, is_better, is_higher_better
from shoal.training.checkpoint.contents import TrainingProgress


class EarlyStoppingConfig(Section):
    metric: str = Field("val/loss", description="that has to improve; train.select=best goes by it too")
    patience: int | None = Field(
        None, ge=1, description="evaluations without improvement after which training ends; null: it goes on"
    )
    min_delta: float = Field(0.0, ge=0, description="change of the metric that counts as an improvement")


def note_evaluation(
    config: EarlyStoppingConfig, progress: TrainingProgress, said: Directions = BY_NAME
) -> None:
    """Count an evaluation that has just been made, and say in the progress if training ends with it.

    Args:
        said: in which direction metrics are better, of those that say so themselves.

    Raises:
        ConfigError: there is no such metric, which is not known before where a user's own loss names some.
    """
    if config.patience is None:
        return
    if config.metric not in progress.metrics:
        known = progress.metrics
        raise ConfigError(
            f"train.early_stopping.metric='{config.metric}' is not reported{nearest(config.metric, known)}: write one "
            f"of {', '.join(known)}"
        )
    value = progress.metrics[config.metric]
    margin = -config.min_delta if is_higher_better(config.metric, said) else config.min_delta
    if is_better(config.metric, value + margin, progress.to_beat, said):
        progress.to_beat, progress.stalled = value, 0
        return
    progress.stalled += 1
    if progress.stalled >= config.patience:
        progress.ended_by = "early_stopping"
