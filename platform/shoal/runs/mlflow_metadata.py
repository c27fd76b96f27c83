"""What MLflow receives of a run besides metrics: few params, tags, the data set, the environment."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from shoal import devices
from shoal.config.schema import flatten
from shoal.data.dataset_info import DatasetInfo
from shoal.data.preprocessing import Transform
from shoal.models.size import ModelSize
from shoal.runs.config import RunConfig
from shoal.runs.machine import submission_id
from shoal.runs.transcripts import TABLE_TAG
from shoal.storage.records import DatasetRecord, Environment, Metadata, ModelRecord, Resize, RunsTable
from shoal.tasks.metrics import best_name
from shoal.tasks.registry import TASKS

PARAMS = (
    "seed",
    "task",
    "data.source",
    "data.global_batch_size",
    "model.name",
    "model.width",
    "model.depth",
    "optim.name",
    "optim.lr",
    "optim.weight_decay",
    "optim.schedule",
    "train.epochs",
    "train.precision",
)
MOST_RESIZES = 50  # that a tag names, the last ones


def run_metadata(
    config: RunConfig, dataset_info: DatasetInfo, size: ModelSize, with_environment: bool = True
) -> Metadata:
    """Return params, tags, data set and size of a run, and the environment it runs in."""
    flat = flatten(config)
    source, job = config.data.source, submission_id()
    return Metadata(
        params={key: flat[key] for key in PARAMS if flat[key] is not None}
        | {"model.parameters": size.parameters},
        tags={
            "mlflow.note.content": f"`{config.model.name}` on `{source}`: {size}",
            "shoal.num_workers": config.scale.num_workers,
        }
        | ({"shoal.submission_id": job} if job else {})
        | ({"shoal.not_loaded": size.not_loaded} if size.not_loaded else {})
        | (TABLE_TAG if TASKS[config.task].takes_recordings else {}),
        contexts=["training"],
        dataset=training_dataset(source, dataset_info.fingerprint, dataset_info.transform, dataset_info.rows),
        model=model_record(size),
        table=runs_table(("model.width", "optim.lr"), "val/loss", config, is_ascending=True),
        environment=_environment() if with_environment else None,
    )


def resize_tags(resizes: Sequence[Resize]) -> dict[str, str]:
    """Return the tag that says when the number of workers changed, e.g. `2 to 1 at step 120, 1 to 2 at step 300`."""
    last = [f"{one.before} to {one.workers} at step {one.step}" for one in resizes[-MOST_RESIZES:]]
    return {"shoal.resizes": ", ".join([*(["..."] if len(resizes) > MOST_RESIZES else []), *last])}


def training_dataset(
    source: str, fingerprint: str, transform: Transform, rows: Mapping[str, int]
) -> DatasetRecord:
    """Return what MLflow shows of the data that a model is trained on.

    Args:
        rows: how many, by split.
    """
    columns = [{"name": column.name, "kind": column.kind} for column in transform.columns[:200]]
    return DatasetRecord(
        name=source.partition("?")[0][-250:],
        digest=fingerprint,
        source_type=source.partition(":")[0],
        source=json.dumps({"uri": source}),
        schema=json.dumps({"columns": columns, "label": transform.label.name}),
        profile=json.dumps({"rows": rows, "classes": len(transform.label.classes)}),
    )


def runs_table(params: Sequence[str], metric: str, config: RunConfig, is_ascending: bool) -> RunsTable:
    """Return the first columns of MLflow's table: what varies, what is compared, and two other metrics.

    MLflow's table has the last value of a metric, and `best/*` that of the selected weights.
    """
    shown = [metric, *(name for name in config.reported if name != metric)][:3]
    if config.train.select == "best":
        shown = [best_name(name) for name in shown]
    return RunsTable(params=list(params), metrics=shown, is_ascending=is_ascending)


def model_record(size: ModelSize) -> ModelRecord:
    return ModelRecord(
        parameters=size.parameters,
        bytes=size.bytes,
        flops_per_sample=size.flops_per_sample,
        trained=size.trained,
        not_loaded=size.not_loaded,
    )


def _environment() -> Environment:
    packages = {name.metadata["Name"]: name.version for name in importlib.metadata.distributions()}
    return Environment(
        python=sys.version.split()[0],
        platform=platform.platform(),
        processor=platform.machine(),
        gpus=devices.names(),
        git=_git(),
        argv=sys.argv,
        packages=dict(sorted(packages.items())),
    )


def _git() -> dict[str, JsonValue] | None:
    if not shutil.which("git"):
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True)
    return {"commit": head.stdout.strip(), "is_dirty": bool(changed.stdout.strip())}
