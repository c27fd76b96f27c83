import pytest

from shoal.config.loading import load
from shoal.errors import ConfigError
from shoal.runs.config import RunConfig
from shoal.tasks.metrics import BY_NAME
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.early_stopping import EarlyStoppingConfig, note_evaluation
from training_run import STEPS, TrainingRun


def evaluations_until_the_end(values, said=BY_NAME, **config):
    """After how many evaluations training ends; None if it does not."""
    progress, made = TrainingProgress(), EarlyStoppingConfig(**config)
    for number, value in enumerate(values, 1):
        progress.metrics = {made.metric: value}
        note_evaluation(made, progress, said)
        if progress.has_ended:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "config", "ends"),
    [
        ([3.0, 2.0, 1.0, 0.5], {"patience": 1}, None),
        ([1.0, 1.0], {"patience": 1}, 2),
        ([1.0, 1.1, 0.9, 1.0, 0.95], {"patience": 2}, 5),
        ([1.0, 0.95, 0.91, 0.86], {"patience": 3, "min_delta": 0.1}, None),
        ([1.0, 0.95, 0.91, 0.86], {"patience": 2, "min_delta": 0.2}, 3),
        ([0.5, 0.6, 0.7], {"patience": 1, "metric": "val/accuracy"}, None),
        ([0.5, 0.55, 0.6], {"patience": 1, "metric": "val/accuracy", "min_delta": 0.06}, 2),
        ([0.5, 0.6, 0.7], {"patience": 1, "metric": "val/auroc", "said": {"auroc": True}}, None),
        ([0.5, 0.6, 0.55, 0.58], {"patience": 2, "metric": "val/auroc", "said": {"auroc": True}}, 4),
        ([0.5, 0.4, 0.3], {"patience": 1, "metric": "val/gap", "said": {"gap": False}}, None),
        ([float("nan"), float("nan")], {"patience": 2}, 2),
        ([1.0, float("nan"), 0.5, 0.4], {"patience": 2}, None),
        ([1.0] * 9, {"patience": None}, None),
    ],
)
def test_training_ends_after_so_many_evaluations_without_an_improvement(values, config, ends):
    assert evaluations_until_the_end(values, **config) == ends


def test_a_run_ends_at_the_evaluation_that_exhausts_the_patience(tmp_path):
    stopping = {"patience": 2, "min_delta": 10.0}
    run = TrainingRun(tmp_path, epochs=50, early_stopping=stopping).train()
    assert run.progress.step == 3 * STEPS == run.saved[-1]  # the first evaluation is the value to beat
    assert run.progress.ended_by == "early_stopping"
    again = TrainingRun(tmp_path, epochs=50, early_stopping=stopping).resume().train()
    assert again.metric_log.points == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["train.early_stopping={metric: val/acuracy, patience: 3}"],
            "val/acuracy' .did you mean 'val/accuracy'",
        ),
        (["train.early_stopping.patience=3", "data.validation_fraction=0"], "needs a validation split"),
        (["train.early_stopping.patience=0"], "train.early_stopping.patience=0: it should be greater than"),
        (["train.early_stopping.patient=2"], "did you mean 'train.early_stopping.patience'"),
    ],
)
def test_what_cannot_stop_a_training_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        load(RunConfig, None, settings)
