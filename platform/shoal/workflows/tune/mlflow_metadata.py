"""What MLflow receives of a sweep besides metrics: the space among its params, the best trial among its tags."""

from shoal.data.dataset_info import DatasetInfo
from shoal.runs.mlflow_metadata import run_metadata, runs_table
from shoal.runs.validate import measure_model
from shoal.storage.records import Metadata, TrialRow
from shoal.storage.run_folder import RunFolder
from shoal.tune.validate import SweepPlan


def sweep_metadata(plan: SweepPlan, dataset_info: DatasetInfo) -> Metadata:
    """Return what is known before the first trial."""
    base, tune = plan.base, plan.config.tune
    size = base.size or measure_model(base.config, dataset_info)
    metadata = run_metadata(base.config, dataset_info, size)
    params = metadata.params | plan.config.space
    params |= {f"tune.{key}": getattr(tune, key) for key in ("metric", "scheduler", "search", "repeat")}
    del params["model.parameters"]  # differs between trials
    tags = metadata.tags | {"shoal.trials": plan.total, "shoal.sweep": "true"}
    table = runs_table([*plan.config.space], tune.metric, base.config, plan.config.mode == "min")
    return metadata.replace(params=params, tags=tags, table=table)


def add_best(folder: RunFolder, metric: str, won: TrialRow, run_id: str | None, note: str) -> None:
    """Add the best trial as tags: MLflow's params cannot change, and a later attempt may find a better one."""
    metadata = folder.load(Metadata)
    assert metadata is not None, "it is written before the first trial"
    tags = {f"best.{key}": value for key, value in won.params.items()} | {
        "best.trial": won.name,
        f"best.{metric.replace('/', '_')}": won.metric,
        "best.run_id": run_id,
        "mlflow.note.content": note,
    }
    folder.save(metadata.extended(tags=tags))
