"""What tests of sweeps share: running one, and what they compare."""

from typing import Any

from running import ROOT, Place, mlflow_record

CONFIG = str(ROOT / "jobs/configs/tune.yaml")
QUICK = ("train.epochs=6", "data.global_batch_size=32")


def sweep(place: Place, *arguments: str, **env: str) -> dict[str, Any]:
    done = place.run("tune", *arguments, **env)
    assert done.code == 0, done.out + done.err
    return done.result


def points(result: dict[str, Any]) -> dict[str, Any]:
    """What depends on the config alone: each trial's point, status, curve and metric."""
    kept = ("params", "status", "metric", "steps", "curve", "reason")
    return {row["name"]: {key: row[key] for key in kept} for row in result["rows"]}


def children(result: dict[str, Any]) -> dict[str, tuple[str, dict[tuple[str, int], float]]]:
    """Status and metric history of each child run in MLflow, by name; each name is there once."""
    from mlflow import MlflowClient

    uri, parent = result["tracking_uri"], result["mlflow_run_id"]
    client = MlflowClient(uri, uri)
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    names = [run.info.run_name.split()[0] for run in found]
    assert len(names) == len(set(names)), f"some are there twice: {sorted(names)}"
    assert not client.search_runs([experiment], "attributes.status = 'RUNNING'")
    return {
        run.info.run_name.split()[0]: (run.info.status, mlflow_record(uri, run.info.run_id)[1])
        for run in found
    }
