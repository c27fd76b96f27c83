"""The rows that a trained model is looked at on: those that its training held out, or all of another source."""

from shoal.data.sampler import TEST, VALIDATION
from shoal.data.sources.base import Source
from shoal.inference.artifact_code import check_source_of_artifact
from shoal.inference.predictor import Predictor
from shoal.tasks.open_data import reopen_source


def open_rows(predictor: Predictor, other: str | None, trust_code: bool) -> Source:
    """Open the data that a model was trained on, or other data in the same way.

    Args:
        other: another source, as `data.source`.
        trust_code: call the function that the model's description names as its data.

    Raises:
        UserError: the source cannot be read, or is a function that may not be called.
    """
    preprocessing, transform = predictor.preprocessing, predictor.transform
    if other is None:
        check_source_of_artifact(preprocessing.data.source, trust_code)
    shape = transform.input_shape if other and transform.image_bits else None
    return reopen_source(preprocessing, predictor.task.name, other, shape)


def splits_to_try(other: str | None) -> tuple[str | None, ...]:
    """Return the splits of `open_rows` whose first that has rows is taken; None stands for all rows."""
    return (None,) if other else (TEST, VALIDATION)
