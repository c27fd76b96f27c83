"""Evaluate a trained model on rows that it was not trained on."""

import os
from typing import Any

from shoal.api.config import make_config
from shoal.api.models import Model, load_model
from shoal.api.results import BestTrial, EvaluationResult, TrainResult
from shoal.api.train import own_warnings
from shoal.inference.predictor import Predictor
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.job_result import job_name
from shoal.runs.locations import resolve_tracking_uri
from shoal.storage import records
from shoal.terminal.reports import unsynced_warning
from shoal.workflows import evaluate as workflow
from shoal.workflows.evaluate import EvaluateConfig, Evaluation

TRACKING_URI = "track.tracking_uri"


def evaluate(
    model: Model | TrainResult | BestTrial | str | os.PathLike[str],
    source: Any = None,
    label: str | None = None,
    *,
    trust_code: bool = False,
    **overrides: Any,
) -> EvaluationResult:
    """Measure a model, and log the metrics to MLflow as a run of their own.

    Args:
        model: what `shoal.train` or `shoal.load_model` returned, or where it is: a run folder, `runs:/ID`,
            `models:/NAME@ALIAS`.
        source: rows to measure all of: a frame, a Dataset, ..., or as `data.source`; None: those held out in training.
        label: the label column there; None: as in training.
        trust_code: run the model's own code, and the function that returned its data; see `shoal.load_model`.
        overrides: other keys, e.g. `experiment_name="checks"`.

    Raises:
        ModelError: there is no such model, or it needs code that may not be run.
        DataError: no rows, a missing column, or a label that the model does not know.
    """
    if isinstance(model, TrainResult) and model.tracking_uri and TRACKING_URI not in overrides:
        overrides = {TRACKING_URI: model.tracking_uri, **overrides}
    given = {"trust_code": trust_code, "data.source": source, "data.label": label}
    with own_warnings():
        config = make_config(EvaluateConfig, given, overrides)
        if isinstance(model, TrainResult | BestTrial):
            model = model.model
        elif not isinstance(model, Model):
            model = load_model(model, trust_code=trust_code, tracking_uri=config.track.tracking_uri)
        return EvaluationResult(run_evaluation(model.predictor, model.uri, config)[1])


def run_evaluation(
    predictor: Predictor, uri: str, config: EvaluateConfig
) -> tuple[Evaluation, records.EvaluationResult]:
    """Measure a model and log the metrics; a warning says where MLflow did not receive them."""
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    measured = workflow.evaluate(predictor, config)
    name = job_name("evaluate", uri)
    result = workflow.log_evaluation(measured, uri, name, config, tracking_uri)
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    return measured, result
