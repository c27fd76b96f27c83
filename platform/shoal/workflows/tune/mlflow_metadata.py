"""What MLflow is told of a sweep besides its metrics: the space among its params, its best trial among its tags."""

from typing import Any

from shoal.data.dataset_info import DatasetInfo
from shoal.runs.mlflow_metadata import run_metadata
from shoal.runs.validate import measure_model
from shoal.storage.records import TrialRow
from shoal.storage.run_folder import METADATA, RunFolder
from shoal.tune.validate import SweepPlan


def sweep_metadata(plan: SweepPlan, dataset_info: DatasetInfo) -> dict[str, Any]:
    """Return what is known before the first trial."""
    base, tune = plan.base, plan.config.tune
    metadata = run_metadata(base.config, dataset_info, base.size or measure_model(base.config, dataset_info))
    metadata["params"] |= dict(plan.config.space) | {
        f"tune.{key}": getattr(tune, key) for key in ("metric", "scheduler", "search", "repeat")
    }
    del metadata["params"]["model.parameters"]
    metadata["tags"] |= {"shoal.trials": plan.total, "shoal.sweep": "true"}
    return metadata


def add_best(folder: RunFolder, metric: str, won: TrialRow, run_id: str | None, note: str) -> None:
    """Add which trial is best; a later attempt may find a better one, so it is tags that say it."""
    metadata = folder.read_json(METADATA)
    metadata["tags"] |= {f"best.{key}": value for key, value in won.params.items()}
    metadata["tags"] |= {
        "best.trial": won.name,
        f"best.{metric.replace('/', '_')}": won.metric,
        "best.run_id": run_id,
        "mlflow.note.content": note,
    }
    folder.write_json(METADATA, metadata)
