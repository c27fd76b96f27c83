"""Evaluation of a finished model on rows it was not trained on, recorded as a run of its own. Needs no ray."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from shoal.cluster.config import home
from shoal.cluster.record import Record, keep
from shoal.config import Section
from shoal.data.opening import reopen
from shoal.data.order import SPLITS, TEST, VALIDATION
from shoal.data.prepare import number_blocks
from shoal.errors import DataError
from shoal.predict import Predictor
from shoal.runfolder import IDENTITY, RunFolder
from shoal.tasks import Classification, per_class
from shoal.track.config import TrackConfig
from shoal.track.pictures import confusion_matrix


class AssessedData(Section):
    source: str | None = Field(
        None, description="all rows of another source; null: the split held out in training"
    )
    label: str | None = Field(None, description="the label column there; null: as in training")


class AssessConfig(Section):
    experiment_name: str = Field("evaluations", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the result goes")
    data: AssessedData = Field(default_factory=AssessedData)
    track: TrackConfig = Field(default_factory=TrackConfig)


@dataclass(frozen=True)
class Assessment:
    """What was measured.

    Attributes:
        metrics: loss, accuracy, ... over all rows.
        classes: per class precision, recall and support, by column; None for a regression.
        confusion: [true class, predicted class] counts.
    """

    rows: int
    split: str
    source: str
    metrics: dict[str, float]
    names: tuple[Any, ...]
    classes: dict[str, list[float]] | None
    confusion: np.ndarray | None


def assess(predictor: Predictor, config: AssessConfig) -> Assessment:
    """Measure a model on each row once.

    Raises:
        DataError: no rows, a missing column, or a label the model does not know.
    """
    recipe, other = predictor.trained_on, config.data.source
    label = predictor.transform.label
    if config.data.label and predictor.transform.has_label:
        renamed = label.model_copy(update={"name": config.data.label})
        transform = predictor.transform.model_copy(update={"label": renamed})
        recipe = replace(recipe, data=recipe.data.model_copy(update={"label": config.data.label}))
        predictor = Predictor(predictor.model, transform, predictor.task, recipe, predictor.name)
    source = reopen(recipe, predictor.name, other)
    total: dict[str, Tensor] = {}
    for block, splits in number_blocks(source, recipe):
        for number, split in enumerate(SPLITS):
            mine = np.ones(len(splits), bool) if other else splits == number
            name: str = "all" if other else split
            if mine.any() and not (other and number):
                sums = predictor.sums({column: values[mine] for column, values in block.items()})
                total[name] = total[name] + sums if name in total else sums
    found = next((name for name in ("all", TEST, VALIDATION) if name in total), None)
    if found is None:
        raise DataError(f"'{source.uri}' has no held-out rows: name other data with data.source=...")
    sums = total[found]
    confusion = predictor.task.confusion(sums) if isinstance(predictor.task, Classification) else None
    return Assessment(
        rows=int(sums[0]),
        split=found,
        source=source.uri,
        metrics=predictor.task.metrics(sums),
        names=label.classes,
        classes=dict(per_class(confusion)) if confusion is not None else None,
        confusion=confusion.numpy() if confusion is not None else None,
    )


def record(
    measured: Assessment, model: str, name: str, config: AssessConfig, tracking_uri: str
) -> dict[str, Any]:
    """Write a run folder with the result and bring MLflow level with it."""
    dataset = {
        "name": Path(measured.source).name[-250:],
        "digest": str(measured.rows),
        "source_type": "shoal",
    }
    facts = {
        "params": {"model": model, "data.source": measured.source, "split": measured.split},
        "tags": {"shoal.job": "evaluate"},
        "contexts": ["evaluation"],
        "dataset": {**dataset, "source": measured.source},
    }
    pictures = {}
    if measured.confusion is not None:
        title = f"{name}: {measured.split}"
        pictures["confusion_matrix"] = confusion_matrix(measured.confusion, measured.names, title)
    result = {
        "model": model,
        "data_source": measured.source,
        "split": measured.split,
        "rows": measured.rows,
        "metrics": measured.metrics,
        "per_class": _by_class(measured),
    }
    metrics = {f"test/{key}": value for key, value in measured.metrics.items()}
    found = Record(config, facts, metrics, pictures, result)
    return keep(_unused_folder(config, name), found, config.experiment_name, tracking_uri)


def _unused_folder(config: AssessConfig, name: str) -> RunFolder:
    storage = config.storage_path if "://" in config.storage_path else str(home() / config.storage_path)
    base, number = f"{storage}/{config.experiment_name}/{name}", 1
    while (folder := RunFolder(f"{base}-{number}")).exists(IDENTITY):
        number += 1
    return folder


def _by_class(measured: Assessment) -> dict[str, dict[str, float]] | None:
    if measured.classes is None:
        return None
    return {
        str(name): {key: column[number] for key, column in measured.classes.items()}
        for number, name in enumerate(measured.names)
    }
