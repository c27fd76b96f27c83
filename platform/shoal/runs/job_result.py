"""What a job besides training found, kept as a run of its own: a run folder that is synced to MLflow.

It does not know what was found or how. A job that works on other runs leaves a result alone (`write_plain_result`).
"""

import contextlib
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from shoal.config.loading import to_yaml
from shoal.config.schema import Section
from shoal.runs.heartbeat import Heartbeat
from shoal.runs.locations import artifact_location, home
from shoal.storage.records import DatasetRecord, Identity, Metadata, Result
from shoal.storage.run_folder import CONFIG, PICTURES, RunFolder
from shoal.tracking.background import Tracker
from shoal.tracking.journal import Journal

AnyResult = TypeVar("AnyResult", bound=Result)


@dataclass(frozen=True)
class JobResult(Generic[AnyResult]):
    """What is kept.

    Attributes:
        config: of the job.
        metadata: params, tags and data set for MLflow.
        metrics: finite numbers by MLflow's name.
        pictures: PNG bytes by name.
        kind: of the result.
        result: its fields besides those of `Result`.
        identity: fields of the run's identity besides its name, e.g. as what its model is registered.
    """

    config: Section
    metadata: Metadata
    metrics: Mapping[str, float]
    pictures: Mapping[str, bytes]
    kind: type[AnyResult]
    result: Mapping[str, Any]
    identity: Mapping[str, Any] = field(default_factory=dict)


def job_name(job: str, model: str) -> str:
    """Return what a job's runs on a model are called: the job, and the last part of the model's address."""
    return f"{job}-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", model.rstrip("/").rpartition("/")[2])


def job_dataset(source: str, digest: str) -> DatasetRecord:
    """Return what MLflow shows as the data of a job on a model.

    Args:
        digest: of the rows, or how many there are.
    """
    return DatasetRecord(name=Path(source).name[-250:], digest=digest, source_type="shoal", source=source)


def unused_folders(storage_path: str, experiment: str, name: str) -> Iterator[RunFolder]:
    """Yield those of `name-1`, `name-2`, ... below a storage path that are no run's folder yet."""
    storage = storage_path if "://" in storage_path else str(home() / storage_path)
    folders = (RunFolder(f"{storage}/{experiment}/{name}-{number}") for number in itertools.count(1))
    return (folder for folder in folders if not folder.exists(Identity.file))


def unused_folder(storage_path: str, experiment: str, name: str) -> RunFolder:
    """Return the first of `unused_folders`."""
    return next(unused_folders(storage_path, experiment, name))


def log_job_result(
    folder: RunFolder, found: JobResult[AnyResult], experiment: str, tracking_uri: str
) -> AnyResult:
    """Write a run folder and sync it to MLflow; returns what `result.json` holds."""
    name = folder.uri.rpartition("/")[2]
    folder.create()
    folder.acquire_lease()
    folder.clear_leftovers()
    folder.create_identity(
        name=name,
        experiment=experiment,
        tracking_uri=tracking_uri,
        artifact_location=artifact_location(tracking_uri),
        **found.identity,
    )
    heartbeat = Heartbeat(folder)
    heartbeat.start()
    try:
        return _write(folder, found, heartbeat)
    finally:
        heartbeat.close()


def _write(folder: RunFolder, found: JobResult[AnyResult], heartbeat: Heartbeat) -> AnyResult:
    identity, attempt = folder.identity(), folder.attempt
    assert attempt is not None
    folder.write(CONFIG, to_yaml(found.config).encode())
    folder.save(found.metadata)
    journal = Journal(folder, attempt)
    journal.log(0, dict(found.metrics))
    journal.sync()
    for picture, png in found.pictures.items():
        folder.write(f"{PICTURES}/{picture}.png", png)
    result = found.kind(
        status="FINISHED",
        run_name=identity.name,
        experiment_name=identity.experiment,
        tracking_uri=identity.tracking_uri,
        run_folder=folder.uri,
        **found.result,
    )
    folder.save(result)
    heartbeat.set_status("FINISHED")
    tracker = Tracker(folder)
    tracker.start()
    is_delivered = tracker.close()
    result = result.replace(mlflow_run_id=tracker.run_id, is_delivered=is_delivered)
    folder.save(result)
    return result


def write_plain_result(storage: str, kind: type[AnyResult], job: str, **found: Any) -> AnyResult:
    """Write the result of a job that is no run: into `job/job-1`, ... below storage, or into a temporary folder.

    Raises:
        StorageError: neither can be written.
    """
    with contextlib.suppress(OSError):
        return _write_plain(_unused_result_folder(f"{storage}/{job}", job), kind, found)
    return _write_plain(RunFolder(tempfile.mkdtemp(prefix=f"shoal-{job}-")), kind, found)


def _write_plain(folder: RunFolder, kind: type[AnyResult], found: Mapping[str, Any]) -> AnyResult:
    folder.set_stopping(True)  # no minutes of patience with a store that is away
    folder.create()
    result = kind(run_name=folder.uri.rpartition("/")[2], run_folder=folder.uri, **found)
    folder.save(result)
    return result


def _unused_result_folder(parent: str, job: str) -> RunFolder:
    folder = RunFolder(parent)
    folder.set_stopping(True)
    taken = set(folder.names())
    return RunFolder(next(f"{parent}/{job}-{n}" for n in itertools.count(1) if f"{job}-{n}" not in taken))
