"""What a job found out besides training, kept as a run of its own: a run folder, and MLflow level with it.

It knows neither what was found nor how.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.config.loading import to_yaml
from shoal.config.schema import Section
from shoal.runs.locations import artifact_location
from shoal.storage.run_folder import CONFIG, IDENTITY, METADATA, PICTURES, RESULT, RunFolder
from shoal.tracking.background import Tracker
from shoal.tracking.journal import Journal


@dataclass(frozen=True)
class JobResult:
    """What is kept.

    Attributes:
        config: of the job.
        metadata: as `metadata.json` has them: params, tags, contexts, dataset.
        metrics: finite numbers by MLflow's name.
        pictures: PNG bytes by name.
        result: what `result.json` says besides where the run is.
    """

    config: Section
    metadata: Mapping[str, Any]
    metrics: Mapping[str, float]
    pictures: Mapping[str, bytes]
    result: Mapping[str, Any]


def log_job_result(folder: RunFolder, found: JobResult, experiment: str, tracking_uri: str) -> dict[str, Any]:
    """Write a run folder and bring MLflow level with it; returns what `result.json` holds."""
    name = folder.uri.rpartition("/")[2]
    folder.create()
    attempt = folder.acquire_lease()
    folder.create_identity(
        name=name,
        experiment=experiment,
        tracking_uri=tracking_uri,
        artifact_location=artifact_location(tracking_uri),
    )
    folder.write(CONFIG, to_yaml(found.config).encode())
    folder.write_json(METADATA, found.metadata)
    journal = Journal(folder, attempt)
    journal.log(0, dict(found.metrics))
    journal.sync()
    for picture, png in found.pictures.items():
        folder.write(f"{PICTURES}/{picture}.png", png)
    result = {
        "status": "FINISHED",
        "run_name": name,
        "experiment_name": experiment,
        **found.result,
        "tracking_uri": tracking_uri,
        "run_folder": folder.uri,
    }
    return _deliver(folder, result)


def _deliver(folder: RunFolder, result: dict[str, Any]) -> dict[str, Any]:
    tracker = Tracker(folder)
    folder.write_json(RESULT, result)
    ended = {"status": "FINISHED", "end_ms": int(time.time() * 1000)}
    folder.update_json(IDENTITY, tracking_uri=result["tracking_uri"], **ended)
    tracker.start()
    is_delivered = tracker.close()
    result = {**result, "mlflow_run_id": tracker.run_id, "is_delivered": is_delivered}
    folder.write_json(RESULT, result)
    folder.release_lease()
    return result
