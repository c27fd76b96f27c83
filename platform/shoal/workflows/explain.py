"""Explanation of a finished model: attributed, checked, drawn, recorded as a run. Needs no ray."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from shoal.config.schema import Section
from shoal.data.sampler import TEST, VALIDATION
from shoal.data.sources.base import read_again
from shoal.errors import ConfigError, DataError
from shoal.explain.attribution import Method
from shoal.explain.explanation import Explanation, explain_rows
from shoal.explain.page import Picture, html_page
from shoal.explain.pictures import draw, failure, title_of
from shoal.explain.rows import Features, answer, choose, read_features, target_of
from shoal.explain.subject import check_installed, check_kind, make_subject
from shoal.inference.artifact_code import check_source_of_artifact
from shoal.inference.evaluation import first_rows, split_blocks
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.runs.job_result import JobResult, log_job_result, unused_folder
from shoal.storage.records import DatasetRecord, ExplainResult, Metadata
from shoal.storage.run_folder import REPORTS, RunFolder
from shoal.tasks.open_data import reopen_source
from shoal.tracking.config import TrackConfig

PAGE = f"{REPORTS}/explanation.html"
TABLE_ROWS, OTHER_ROWS = 1000, 200


class ExplainOptions(Section):
    method: Method = Field(
        "integrated_gradients", description="of attribution; texts are explained by integrated_gradients alone"
    )
    target: str | int | float | bool | None = Field(
        None, description="the class whose logit is explained; null: the one that the model predicts for each row"
    )
    rows: tuple[int, ...] = Field(
        (), description="numbers of rows to explain one by one, from 0 in the order in which they are read"
    )
    worst: int = Field(3, ge=0, description="rows with the highest loss that are explained one by one")
    random: int = Field(3, ge=0, description="random rows that are explained one by one")
    sample: int | None = Field(
        None, ge=2, description=f"rows that are read at the most; null: {TABLE_ROWS} of a table, else {OTHER_ROWS}"
    )
    seed: int = Field(0, ge=0, description="of random rows, shuffles and re-drawn weights")

    @field_validator("rows", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, int) else value


class ExplainData(Section):
    source: str | None = Field(
        None, description="labelled rows to explain; null: those held out in training"
    )


class ExplainConfig(Section):
    experiment_name: str = Field("explanations", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the result goes")
    trust_code: bool = Field(
        False,
        description="run the code that the model's description names: its builder, which lies in the model, and the "
        "function of the working directory that returned its data",
    )
    explain: ExplainOptions = Field(default_factory=ExplainOptions)
    data: ExplainData = Field(default_factory=ExplainData)
    track: TrackConfig = Field(default_factory=TrackConfig)


@dataclass(frozen=True)
class HeldOut:
    """The rows that are explained, and where they are from."""

    features: Features
    split: str
    source: str


def explain(uri: str, name: str, config: ExplainConfig, tracking_uri: str) -> ExplainResult:
    """Explain a model on rows that training held out, into a run folder.

    Args:
        uri: of the model.
        name: of the run.

    Raises:
        UserError: captum is missing, there is no such model, class or row, there are no rows, or models of its kind
            are not explained.
    """
    check_installed()
    with tempfile.TemporaryDirectory(prefix="shoal-explain-") as downloads:
        source = resolve_model(uri, tracking_uri, downloads)
        predictor = Predictor.load(source, trust_code=config.trust_code)
    check_kind(predictor)
    _check_method(predictor, config.explain.method)
    held_out = read_again(lambda: _held_out(predictor, config))
    explanation = _explain(predictor, held_out.features, config.explain)
    folder = unused_folder(config.storage_path, config.experiment_name, name)
    return _log(folder, config, tracking_uri, uri, predictor, held_out, explanation)


def _check_method(predictor: Predictor, method: Method) -> None:
    if predictor.transform.tokenizer is not None and method != "integrated_gradients":
        raise ConfigError(
            f"explain.method={method}: tokens of a text are explained by explain.method=integrated_gradients alone"
        )


def _held_out(predictor: Predictor, config: ExplainConfig) -> HeldOut:
    """Read the first rows that training held out, or of other data.

    Raises:
        DataError: there are none, or they do not fit the model.
    """
    preprocessing, transform, other = predictor.preprocessing, predictor.transform, config.data.source
    if other is None:
        check_source_of_artifact(preprocessing.data.source, config.trust_code)
    shape = transform.input_shape if other and transform.image_bits else None
    source = reopen_source(preprocessing, predictor.task.name, other, shape)
    is_table = transform.tokenizer is None and len(transform.input_shape) == 1
    most = config.explain.sample or (TABLE_ROWS if is_table else OTHER_ROWS)
    for split in (None,) if other else (TEST, VALIDATION):
        features = read_features(transform, first_rows(split_blocks(source, preprocessing, split), most))
        if features is not None:
            return HeldOut(features, split or "all", source.uri)
    raise DataError(f"'{source.uri}' has no held-out rows: name labelled rows with data.source=...")


def _explain(predictor: Predictor, features: Features, options: ExplainOptions) -> Explanation:
    subject = make_subject(predictor, features.inputs)
    target = target_of(options.target, subject.outputs, subject.is_classification)
    rows = answer(subject, features, target)
    chosen = choose(options.rows, options.worst, options.random, rows.losses, options.seed)
    return explain_rows(subject, predictor.transform, rows, options.method, chosen, options.seed)


def _log(
    folder: RunFolder,
    config: ExplainConfig,
    tracking_uri: str,
    uri: str,
    predictor: Predictor,
    held_out: HeldOut,
    explanation: Explanation,
) -> ExplainResult:
    """Record a run; pictures and page reach MLflow with it."""
    drawn = draw(explanation)
    source, split, rows = held_out.source, held_out.split, len(held_out.features)
    params = {
        "model": uri,
        "model_digest": predictor.digest,
        "data.source": source,
        "split": split,
        "explain.method": explanation.method,
        "explain.target": str(config.explain.target or "predicted"),
    }
    metadata = Metadata(
        params=params,
        tags={"shoal.job": "explain", "shoal.explanation": failure(explanation.failed) or "passed"},
        contexts=["explain"],
        dataset=DatasetRecord(
            name=Path(source).name[-250:], digest=str(rows), source_type="shoal", source=source
        ),
    )
    folder.create()
    folder.write(PAGE, _page(uri, params | {"rows": str(rows)}, explanation, drawn).encode())
    result = {
        "model": uri,
        "kind": explanation.subject.kind,
        "method": explanation.method,
        "data_source": source,
        "split": split,
        "rows": rows,
        "page": PAGE,
        "is_passed": not explanation.failed,
        "checks": explanation.checks,
        "importance": explanation.importance,
        "explained": [row.record for row in explanation.local],
        "areas": explanation.curves.areas(),
    }
    found = JobResult(config, metadata, _metrics(explanation, rows), drawn, ExplainResult, result)
    return log_job_result(folder, found, config.experiment_name, tracking_uri)


def _metrics(explanation: Explanation, rows: int) -> dict[str, float]:
    """Return the checks, areas and importances that are numbers."""
    found = {"explain/rows": float(rows)}
    found |= {f"explain/{check.name}": check.value for check in explanation.checks}
    found |= {f"explain/area_{name}": area for name, area in explanation.curves.areas().items()}
    return {name: value for name, value in found.items() if value == value and abs(value) != float("inf")}


def _page(
    uri: str, summary: dict[str, str], explanation: Explanation, drawn: dict[str, bytes]
) -> str:
    captions = {
        "importance": ("Importance", failure(explanation.failed)),
        "permutation": ("Permutation importance", failure([c for c in explanation.failed if c.name == "learned"])),
        "faithfulness": ("Faithfulness", failure(explanation.failed)),
    }
    captions |= {
        f"row-{row.record.row}": (title_of(row), failure(row.failed)) for row in explanation.local
    }
    pictures = [
        Picture(caption=captions[name][0], png=png, failed=captions[name][1]) for name, png in drawn.items()
    ]
    return html_page(f"Why {uri} answers as it does", summary, explanation.checks, pictures, explanation.importance)
