"""Explanation of a finished model: attributed, checked, drawn, recorded as a run. Needs no ray."""

import math
import tempfile
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator

from shoal.config.schema import Section
from shoal.data.sources.base import read_again
from shoal.errors import ConfigError, DataError
from shoal.explain.attribution import METHODS, METHODS_OF_TEXT, Method
from shoal.explain.explanation import explain_rows
from shoal.explain.language import token_losses, write_rows
from shoal.explain.page import html_page
from shoal.explain.pictures import Picture, draw, draw_language, failure
from shoal.explain.rows import Features, answer, choose, read_features
from shoal.explain.subject import check_installed, check_kind, make_subject, writes_text
from shoal.inference.evaluation import first_rows, split_blocks
from shoal.inference.held_out import open_rows, splits_to_try
from shoal.inference.onnx_module import check_is_torch
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.runs.job_result import JobResult, job_dataset, log_job_result, unused_folder
from shoal.storage.records import (
    ColumnImportance,
    ExplainedRow,
    ExplainResult,
    ExplanationCheck,
    Metadata,
    WrittenText,
)
from shoal.storage.run_folder import REPORTS, RunFolder
from shoal.tracking.config import StoreConfig

PAGE = f"{REPORTS}/explanation.html"
TABLE_ROWS, OTHER_ROWS = 1000, 200


class ExplainOptions(Section):
    method: Method = Field(
        "integrated_gradients",
        description="of attribution; attention_rollout is of texts, occlusion and input_x_gradient of all else",
    )
    target: str | int | float | bool | None = Field(
        None,
        description="the class or label whose logit is explained, or an output of a custom task by its name or number; "
        "null: the likeliest one of each row",
    )
    rows: tuple[int, ...] = Field(
        (), description="numbers of rows to explain one by one, from 0 in the order in which they are read"
    )
    worst: int = Field(3, ge=0, description="rows with the highest loss that are explained one by one")
    random: int = Field(3, ge=0, description="random rows that are explained one by one")
    sample: int | None = Field(
        None,
        ge=2,
        description=f"rows that are read at the most; null: {TABLE_ROWS} of a table, else {OTHER_ROWS}",
    )
    seed: int = Field(0, ge=0, description="of random rows, shuffles and re-drawn weights")

    @field_validator("rows", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, int) else value


class ExplainData(Section):
    source: str | None = Field(None, description="labelled rows to explain; null: those held out in training")


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
    track: StoreConfig = Field(default_factory=StoreConfig)


@dataclass(frozen=True)
class HeldOut:
    """The rows that are explained, and where they are from."""

    features: Features
    split: str
    source: str


@dataclass(frozen=True)
class Found:
    """What the record, the page and MLflow show, of whatever kind of model."""

    kind: str
    method: str | None
    checks: list[ExplanationCheck]
    pictures: dict[str, Picture]
    importance: list[ColumnImportance] = field(default_factory=list)
    explained: list[ExplainedRow] = field(default_factory=list)
    written: list[WrittenText] = field(default_factory=list)
    areas: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[ExplanationCheck]:
        return [check for check in self.checks if not check.is_passed]


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
        check_is_torch(predictor.model, "is not explained")
        check_kind(predictor)
        _check_options(predictor, config.explain)
        held_out = read_again(lambda: _held_out(predictor, config))
        explained = _explain_language if writes_text(predictor) else _explain
        found = explained(predictor, held_out.features, config.explain)
        folder = unused_folder(config.storage_path, config.experiment_name, name)
        return _log(folder, config, tracking_uri, uri, predictor, held_out, found)


def _check_options(predictor: Predictor, options: ExplainOptions) -> None:
    """Refuse options that mean nothing for the kind of model.

    Raises:
        ConfigError: with the options that do.
    """
    if writes_text(predictor):
        if options.target is not None:
            raise ConfigError(
                f"explain.target={options.target}: a language model has no classes: leave it out"
            )
        known, what = METHODS_OF_TEXT[:1], "language models show what they write"
    elif predictor.transform.tokenizer is not None:
        known, what = METHODS_OF_TEXT, "texts are explained by one of these"
    else:
        known, what = METHODS, "tables and images are explained by one of these"
    if options.method not in known:
        raise ConfigError(f"explain.method={options.method}: {what}: {', '.join(known)}")


def _held_out(predictor: Predictor, config: ExplainConfig) -> HeldOut:
    """Read the first rows that training held out, or of other data.

    Raises:
        DataError: there are none, or they do not fit the model.
    """
    preprocessing, transform, other = predictor.preprocessing, predictor.transform, config.data.source
    source = open_rows(predictor, other, config.trust_code)
    is_table = transform.tokenizer is None and len(transform.input_shape) == 1
    most = config.explain.sample or (TABLE_ROWS if is_table else OTHER_ROWS)
    for split in splits_to_try(other):
        features = read_features(predictor, first_rows(split_blocks(source, preprocessing, split), most))
        if features is not None:
            return HeldOut(features, split or "all", source.uri)
    raise DataError(f"'{source.uri}' has no held-out rows: name labelled rows with data.source=...")


def _explain(predictor: Predictor, features: Features, options: ExplainOptions) -> Found:
    subject = make_subject(predictor, features.inputs)
    rows = answer(subject, features, options.target)
    chosen = choose(options.rows, options.worst, options.random, rows.losses, options.seed)
    found = explain_rows(subject, predictor.transform, rows, options.method, chosen, options.seed)
    return Found(
        subject.kind,
        options.method,
        found.checks,
        draw(found),
        found.importance,
        [row.record for row in found.local],
        areas=found.curves.areas(),
    )


def _explain_language(predictor: Predictor, features: Features, options: ExplainOptions) -> Found:
    losses, constant = token_losses(predictor, features.inputs)
    chosen = choose(options.rows, options.worst, options.random, losses, options.seed)
    found = write_rows(predictor, features.inputs, losses, constant, chosen)
    return Found("language", None, [found.check], draw_language(found), written=found.texts)


def _log(
    folder: RunFolder,
    config: ExplainConfig,
    tracking_uri: str,
    uri: str,
    predictor: Predictor,
    held_out: HeldOut,
    found: Found,
) -> ExplainResult:
    """Record a run; pictures and page reach MLflow with it."""
    source, split, rows = held_out.source, held_out.split, len(held_out.features)
    target = config.explain.target
    params = {
        "model": uri,
        "model_digest": predictor.digest,
        "data.source": source,
        "split": split,
        "explain.method": found.method or "tokens",
        "explain.target": "predicted" if target is None else str(target),
    }
    metadata = Metadata(
        params=params,
        tags={"shoal.job": "explain", "shoal.explanation": failure(found.failed) or "passed"},
        contexts=["explain"],
        dataset=job_dataset(source, str(rows)),
    )
    title, summary = f"Why {uri} answers as it does", params | {"rows": str(rows)}
    pictures = list(found.pictures.values())
    page = html_page(title, summary, found.checks, pictures, found.importance, found.written)
    folder.create()
    folder.write(PAGE, page.encode())
    result = {
        "model": uri,
        "kind": found.kind,
        "method": found.method,
        "data_source": source,
        "split": split,
        "rows": rows,
        "page": PAGE,
        "is_passed": not found.failed,
        "checks": found.checks,
        "importance": found.importance,
        "explained": found.explained,
        "written": found.written,
        "areas": found.areas,
    }
    pngs = {name: picture.png for name, picture in found.pictures.items()}
    job = JobResult(config, metadata, _metrics(found, rows), pngs, ExplainResult, result)
    return log_job_result(folder, job, config.experiment_name, tracking_uri)


def _metrics(found: Found, rows: int) -> dict[str, float]:
    """Return the checks and areas that are finite."""
    metrics = {"explain/rows": float(rows)}
    metrics |= {f"explain/{check.name}": check.value for check in found.checks}
    metrics |= {f"explain/area_{name}": area for name, area in found.areas.items()}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
