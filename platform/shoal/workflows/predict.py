"""Batch prediction: a model, rows of any source, and a folder of predictions; recorded as a run of its own."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from shoal.config.schema import Section
from shoal.data.config import ColumnKind
from shoal.data.sources.base import Block, Chunks, OtherTypesError, Source
from shoal.errors import ConfigError, DataError
from shoal.inference.batch import BatchPredictor, Settings
from shoal.inference.batch_input import fragments, open_input, relearn
from shoal.inference.batch_output import Done, Format, Output, State
from shoal.inference.predictor import Predictor
from shoal.inference.rows import TEXT
from shoal.runs.config import ScaleConfig
from shoal.runs.job_result import JobResult, job_dataset, log_job_result, unused_folder
from shoal.storage.records import Metadata, PredictionResult
from shoal.tracking.config import StoreConfig

SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}

Report = Callable[[int, int, Done], None]  # fragments that are done, of how many, and their rows


class PredictOptions(Section):
    format: Format | None = Field(
        None, description="of the part files; null: by OUTPUT's suffix, else parquet"
    )
    text: str | None = Field(
        None, description="the column that a model of text takes; null: as in training, or text"
    )
    max_new_tokens: int | None = Field(None, ge=1, description="tokens that a causal_lm adds; null: 64")
    temperature: float | None = Field(
        None, ge=0, description="of a causal_lm; 0 takes the likeliest token each time; null: 1"
    )
    seed: int | None = Field(
        None, ge=0, description="of the tokens that a causal_lm draws, for each row; null: 0"
    )
    beam: int | None = Field(
        None,
        ge=0,
        description="texts that a model of speech weighs at a time; null: 0, the likeliest unit of each output",
    )


class PredictData(Section):
    columns: dict[str, ColumnKind] = Field(
        default_factory=dict,
        description="what columns of INPUT are, e.g. {notes: drop}; others are read as in training",
    )


class PredictScale(Section):
    num_workers: int = Field(2, ge=0, description="Ray actors; 0 predicts in this process without Ray")
    cpus_per_worker: float = Field(1.0, gt=0, description="may be a fraction, e.g. 0.5")
    max_failures: int = Field(3, ge=0, description="how often an actor may be lost")


class PredictConfig(Section):
    experiment_name: str = Field("predictions", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the run goes; the predictions go to OUTPUT")
    trust_code: bool = Field(False, description="run the code that lies in the model, e.g. its builder")
    predict: PredictOptions = Field(default_factory=PredictOptions)
    data: PredictData = Field(default_factory=PredictData)
    scale: PredictScale = Field(default_factory=PredictScale)
    track: StoreConfig = Field(default_factory=StoreConfig)


@dataclass(frozen=True)
class Prediction:
    """A batch prediction that was checked, and is ready to start.

    Attributes:
        weights: folder of the weights of the saved model.
        state: to go on from.
        relearned: as of `State`, by what its first rows show.
    """

    predictor: Predictor
    weights: Path
    source: Source
    settings: Settings
    form: Format
    output: str
    state: State
    relearned: list[tuple[str, str]]


def check_prediction(
    predictor: Predictor, weights: Path, uri: str, output: str, config: PredictConfig
) -> Prediction:
    """Open the input and the output and check both, before anything is started.

    Raises:
        UserError: a setting that the model does not have, rows that it cannot take, or a folder of something else.
    """
    settings = Settings(
        config.predict.text or predictor.preprocessing.data.text or TEXT, _params(predictor, config)
    )
    form = config.predict.format or SUFFIXES.get(Path(output).suffix, "parquet")
    output = output if "://" in output else os.path.abspath(os.path.expanduser(output))
    if os.path.isfile(output):
        raise DataError(f"OUTPUT '{output}' is a file: name a folder; predictions are written to files in it")
    source = open_input(predictor, uri, dict(config.data.columns))
    kinds = {"columns": dict(config.data.columns), "text": settings.text, "params": dict(settings.params)}
    first, relearned = _first_rows(source)
    BatchPredictor(predictor, settings).check(first)
    state = State(predictor.digest, (source.uri, source.fingerprint), {"format": form, **kinds}, relearned)
    found = Output(output, form).open(state)
    return Prediction(predictor, weights, source, settings, form, output, found, relearned)


def _first_rows(source: Source) -> tuple[Block, list[tuple[str, str]]]:
    """Return the first block of rows, and the columns that had to be learnt again for it."""
    relearned: list[tuple[str, str]] = []
    while True:
        try:
            for block in fragments(source).blocks():
                if len(next(iter(block.values()), ())):
                    return block, relearned
            raise DataError(f"INPUT '{source.uri}' is empty: it has 0 rows; name one that has some")
        except OtherTypesError as error:
            relearn(source, error.file, error.column)
            relearned.append((error.file, error.column))


def predict(prediction: Prediction, config: PredictConfig, report: Report) -> Done:
    """Predict all rows; after a kill the same call goes on, and ends with the same files.

    Raises:
        DataError: a column turns out to be something else, or no row can be predicted.
    """
    output = Output(prediction.output, prediction.form)
    if prediction.state.done is not None:
        output.remove_markers()
        return prediction.state.done
    output.clear_scratch()
    state = prediction.state
    for file, column in state.relearned[len(prediction.relearned) :]:
        relearn(prediction.source, file, column)
    while True:
        chunks = fragments(prediction.source)
        try:
            _predict(prediction, config, chunks, output, report)
            break
        except OtherTypesError as error:  # what was written has the types of samples
            relearn(prediction.source, error.file, error.column)
            output.clear()
            state = replace(state, relearned=[*state.relearned, (error.file, error.column)])
            output.write_state(state)
    done = output.finish(state, chunks.count).done
    assert done is not None
    return done


def _predict(
    prediction: Prediction, config: PredictConfig, chunks: Chunks, output: Output, report: Report
) -> None:
    """Predict the fragments that are not complete."""
    found = {number: output.fragment(number) for number in range(chunks.count)}
    done = sum((one for one in found.values() if one), Done())
    left = [number for number, one in found.items() if one is None]
    for count, one in enumerate(_each(prediction, config, chunks, output, left), 1):
        done += one
        report(chunks.count - len(left) + count, chunks.count, done)


def _each(
    prediction: Prediction, config: PredictConfig, chunks: Chunks, output: Output, left: list[int]
) -> Iterator[Done]:
    if not left:
        return
    if config.scale.num_workers == 0:
        batch = BatchPredictor(prediction.predictor, prediction.settings)
        yield from (batch.predict_fragment(chunks.read, number, output) for number in left)
        return
    from shoal.cluster.batch_inference import predict_on_cluster

    scale = ScaleConfig(
        num_workers=config.scale.num_workers,
        use_gpu=False,
        cpus_per_worker=config.scale.cpus_per_worker,
        max_failures=config.scale.max_failures,
    )
    yield from predict_on_cluster(
        scale,
        prediction.weights,
        config.trust_code,
        prediction.settings,
        chunks.read,
        (prediction.output, prediction.form),
        left,
    )


def _params(predictor: Predictor, config: PredictConfig) -> Mapping[str, Any]:
    """Return the parameters of texts that are generated, or heard.

    Raises:
        ConfigError: one is set that the model does not have.
    """
    names = ("max_new_tokens", "temperature", "seed", "beam")
    chosen = {name: value for name in names if (value := getattr(config.predict, name)) is not None}
    name = next((name for name in chosen if name not in predictor.params), None)
    if name is not None:
        whose = "speech" if name == "beam" else "models that generate text"
        raise ConfigError(
            f"predict.{name}={chosen[name]} is of {whose}, and this one has learnt "
            f"task={predictor.task.name}: leave it out"
        )
    return predictor.params | chosen


def log_prediction(
    prediction: Prediction,
    done: Done,
    seconds: float,
    model: str,
    name: str,
    config: PredictConfig,
    tracking_uri: str,
) -> PredictionResult:
    """Write a run folder with the result and sync it to MLflow."""
    source, digest = prediction.source.uri, prediction.predictor.digest
    metadata = Metadata(
        params={"model": model, "data.source": source, "output": prediction.output},
        tags={"shoal.job": "predict", "model": model, "model_digest": digest},
        contexts=["prediction"],
        dataset=job_dataset(source, prediction.state.input[1]),
    )
    result = {
        "model": model,
        "model_digest": digest,
        "data_source": source,
        "output": prediction.output,
        "rows": done.rows,
        "rejected": done.rejected,
        "parts": done.parts,
        "seconds": seconds,
    }
    metrics = {"predict/rows": float(done.rows), "predict/rejected": float(done.rejected)}
    found = JobResult(config, metadata, metrics, {}, PredictionResult, result)
    folder = unused_folder(config.storage_path, config.experiment_name, name)
    return log_job_result(folder, found, config.experiment_name, tracking_uri)
