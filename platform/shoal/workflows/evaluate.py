"""Evaluation of a finished model on rows it was not trained on, recorded as a run of its own. Needs no ray."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from shoal.config.schema import Section
from shoal.errors import DataError
from shoal.inference.evaluation import evaluate_on_split
from shoal.inference.held_out import open_rows, splits_to_try
from shoal.inference.predictor import Predictor
from shoal.plots.confusion_matrix import confusion_matrix
from shoal.plots.detection import precision_recall
from shoal.runs.job_result import JobResult, job_dataset, log_job_result, unused_folder
from shoal.storage.records import EvaluationResult, Metadata
from shoal.tasks.average_precision import Curves, curves_of
from shoal.tasks.classification import Classification
from shoal.tasks.metrics import per_class
from shoal.tracking.config import StoreConfig


class EvaluateData(Section):
    source: str | None = Field(
        None, description="all rows of another source; null: the split held out in training"
    )
    label: str | None = Field(None, description="the label column there; null: as in training")


class EvaluateConfig(Section):
    experiment_name: str = Field("evaluations", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the result goes")
    trust_code: bool = Field(
        False,
        description="run the code that the model's description names: its builder, which lies in the model, and the "
        "function of the working directory that returned its data",
    )
    data: EvaluateData = Field(default_factory=EvaluateData)
    track: StoreConfig = Field(default_factory=StoreConfig)


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: loss, accuracy, ... over all rows.
        classes: per class precision, recall and support, by column; None for a regression.
        confusion: [true class, predicted class] counts.
        curves: of a detection.
    """

    rows: int
    split: str
    source: str
    metrics: dict[str, float]
    names: tuple[Any, ...]
    classes: dict[str, list[float]] | None
    confusion: np.ndarray | None
    curves: Curves | None = None


def evaluate(predictor: Predictor, config: EvaluateConfig) -> Evaluation:
    """Measure a model on each row once.

    Raises:
        DataError: no rows, a missing column, or a label the model does not know.
        ModelError: the model was trained on what a function returned, and `trust_code` is not set.
    """
    preprocessing, other = predictor.preprocessing, config.data.source
    label = predictor.transform.label
    if config.data.label and predictor.transform.has_label and not predictor.transform.target_columns:
        renamed = label.model_copy(update={"name": config.data.label})
        transform = predictor.transform.model_copy(update={"label": renamed})
        preprocessing = replace(
            preprocessing, data=preprocessing.data.model_copy(update={"label": config.data.label})
        )
        predictor = predictor.of_other_rows(transform, preprocessing)
    source = open_rows(predictor, other, config.trust_code)
    found = added = None
    for split in splits_to_try(other):
        if split in label.unlabelled:
            continue
        added = evaluate_on_split(predictor, source, preprocessing, split)
        if added is not None:
            found = split or "all"
            break
    if found is None or added is None:
        raise DataError(f"'{source.uri}' has no held-out rows: name other data with data.source=...")
    curves = curves_of(added.measures)
    confusion = predictor.task.confusion(added.sums) if isinstance(predictor.task, Classification) else None
    return Evaluation(
        rows=added.rows,
        split=found,
        source=source.uri,
        metrics=added.results(),
        names=label.classes,
        classes=per_class(confusion) if confusion is not None else None,
        confusion=confusion.numpy() if confusion is not None else None,
        curves=curves,
    )


def log_evaluation(
    measured: Evaluation, model: str, name: str, config: EvaluateConfig, tracking_uri: str
) -> EvaluationResult:
    """Write a run folder with the result and sync it to MLflow."""
    metadata = Metadata(
        params={"model": model, "data.source": measured.source, "split": measured.split},
        tags={"shoal.job": "evaluate"},
        contexts=["evaluation"],
        dataset=job_dataset(measured.source, str(measured.rows)),
    )
    pictures = {}
    if measured.confusion is not None:
        title = f"{name}: {measured.split}"
        pictures["confusion_matrix"] = confusion_matrix(measured.confusion, measured.names, title)
    if measured.curves is not None:
        title = f"{name}: {measured.split}"
        pictures["precision_recall"] = precision_recall(measured.curves.precision, title)
    result = {
        "model": model,
        "data_source": measured.source,
        "split": measured.split,
        "rows": measured.rows,
        "metrics": measured.metrics,
        "per_class": _by_class(measured),
    }
    metrics = {f"test/{key}": value for key, value in measured.metrics.items()}
    found = JobResult(config, metadata, metrics, pictures, EvaluationResult, result)
    folder = unused_folder(config.storage_path, config.experiment_name, name)
    return log_job_result(folder, found, config.experiment_name, tracking_uri)


def _by_class(measured: Evaluation) -> dict[str, dict[str, float]] | None:
    if measured.curves is not None:
        return measured.curves.columns
    if measured.classes is None:
        return None
    return {
        str(name): {key: column[number] for key, column in measured.classes.items()}
        for number, name in enumerate(measured.names)
    }
