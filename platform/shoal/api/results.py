"""What `train`, `tune` and `evaluate` return: the record of a run, with its model, curves and pictures at hand."""

from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from shoal.api import html
from shoal.api.models import Model, own_model
from shoal.storage import records
from shoal.storage.run_folder import RunFolder
from shoal.terminal.tables import table
from shoal.tracking.journal import all_points
from shoal.tune.report.text import params_text

SYSTEM = "system/"  # metrics of the host, whose steps are seconds


class Registered(NamedTuple):
    """A version of a registered model in MLflow."""

    name: str
    version: int

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


class _Recorded:
    """Where a run is.

    Attributes:
        record: what `result.json` holds of it.
    """

    record: records.Result | records.BestTrial

    @property
    def folder(self) -> str:
        """The run folder: an absolute path or a URI."""
        return self.record.run_folder

    @property
    def run_id(self) -> str | None:
        """Of the run in MLflow; None while MLflow was never reached."""
        return self.record.mlflow_run_id


class _Run(_Recorded):
    """What every result says of its run."""

    record: records.Result

    @property
    def status(self) -> str:
        """FINISHED, FAILED or KILLED."""
        return self.record.status

    @property
    def tracking_uri(self) -> str | None:
        """Of MLflow."""
        return self.record.tracking_uri

    @property
    def name(self) -> str:
        return self.record.run_name


class _Trained(_Recorded):
    """What a training has left in a run folder."""

    @cached_property
    def model(self) -> Model:
        """The trained model, loaded when it is first asked for."""
        return own_model(self.folder)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Every metric at every step that it was recorded at: a row for each step, a column for each metric."""
        series: dict[str, dict[int, float]] = {}
        for point in all_points(RunFolder(self.folder)):
            if not point.key.startswith(SYSTEM):
                series.setdefault(point.key, {})[point.step] = point.value
        return pd.DataFrame(series).sort_index().rename_axis("step")

    @property
    def registered(self) -> Registered | None:
        """The version of the registered model; None where `track.registered_model_name` is not set."""
        folder = RunFolder(self.folder)
        name, version = folder.identity().registered_model_name, folder.tracked().model_version
        return Registered(name, version) if name and version is not None else None


class TrainResult(_Run, _Trained):
    """A finished training."""

    record: records.TrainResult

    def __init__(self, record: records.TrainResult) -> None:
        self.record = record

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the final model by MLflow's names: `val/loss`, `test/accuracy`, ..."""
        return dict(self.record.metrics)

    @property
    def best(self) -> dict[str, float]:
        """The best value of each validation metric during training, and the step that `train.select` goes by."""
        return dict(self.record.best)

    def __repr__(self) -> str:
        return f"{self.name}: {self.status}\n{_metrics_text(self.metrics)}\n  {self.folder}"

    def _repr_html_(self) -> str:
        return html.run_page(
            self.name, self.status, self.metrics, RunFolder(self.folder), "pictures/loss_curve.png"
        )


class BestTrial(_Trained):
    """The best trial of a sweep."""

    record: records.BestTrial

    def __init__(self, record: records.BestTrial) -> None:
        self.record = record

    @property
    def params(self) -> dict[str, Any]:
        """The swept keys with this trial's values."""
        return dict(self.record.params)

    @property
    def value(self) -> float | None:
        """Of `tune.metric`."""
        return self.record.value

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of its model by MLflow's names."""
        return dict(self.record.metrics)

    @property
    def name(self) -> str:
        return self.record.trial

    def __repr__(self) -> str:
        return f"{self.name}: {params_text(self.params)}\n{_metrics_text(self.metrics)}"


class SweepResult(_Run):
    """A finished sweep."""

    record: records.SweepResult

    def __init__(self, record: records.SweepResult) -> None:
        self.record = record

    @cached_property
    def best(self) -> BestTrial:
        """The best trial: `.params`, `.metrics`, `.model`."""
        assert self.record.best is not None, "a finished sweep has ranked a trial"
        return BestTrial(self.record.best)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row for each trial, best first: its status, the compared metric, and a column for each swept key."""
        metric = self.record.metric
        rows = [
            {"trial": row.name, "status": row.status, metric: row.metric}
            | row.params
            | {"steps": row.steps, "seconds": row.seconds, "reason": row.reason}
            for row in self.record.rows
        ]
        return pd.DataFrame(rows).set_index("trial")

    @property
    def report(self) -> str:
        """The page with pictures and tables: a path or a URI."""
        return f"{self.folder}/report/report.html"

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.record.trials.items())
        return f"{self.name}: {self.status} ({counts})\nbest {self.best!r}\n  {self.report}"

    def _repr_html_(self) -> str:
        head = html.run_page(self.name, self.status, self.best.metrics, RunFolder(self.folder), None)
        return (
            f"{head}<p>best: {html.escape(params_text(self.best.params))}</p>{self.trials.head(10).to_html()}"
        )


class EvaluationResult(_Run):
    """A finished evaluation."""

    record: records.EvaluationResult

    def __init__(self, record: records.EvaluationResult) -> None:
        self.record = record

    @property
    def metrics(self) -> dict[str, float]:
        """By MLflow's names: `test/loss`, `test/accuracy`, ..."""
        return {f"test/{name}": value for name, value in self.record.metrics.items()}

    @property
    def rows(self) -> int:
        """How many were measured."""
        return self.record.rows

    @property
    def per_class(self) -> pd.DataFrame | None:
        """Precision, recall and support: a row for each class; None where there are none."""
        found = self.record.per_class
        return pd.DataFrame.from_dict(found, orient="index") if found is not None else None

    def __repr__(self) -> str:
        return f"{self.name}: {self.rows} {self.record.split} rows\n{_metrics_text(self.metrics)}"

    def _repr_html_(self) -> str:
        name = f"{self.name}: {self.rows} {self.record.split} rows"
        return html.run_page(
            name, self.status, self.metrics, RunFolder(self.folder), "pictures/confusion_matrix.png"
        )


def _metrics_text(metrics: dict[str, float]) -> str:
    if not metrics:
        return "  nothing was held out: not measured"
    return table([(name, f"{value:.6g}") for name, value in sorted(metrics.items())])
