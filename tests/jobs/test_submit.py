"""`ray job submit` with the working directory uploaded, and `ray job stop`."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import ROOT, eventually, ray_cluster


def ray_job(cluster: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    verb, *rest = arguments
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "job",
            verb,
            "--address",
            f"http://{cluster['dashboard']}",
            *rest,
        ],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with ray_cluster(has_dashboard=True) as made:
        yield made


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """A copy of what a checkout holds, without what .rayignore leaves behind."""
    target = tmp_path / "checkout"
    for name in ("platform", "jobs"):
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    return target


def test_submitted_job_trains(cluster: dict[str, str], upload: Path, tmp_path: Path) -> None:
    settings = [f"storage_path={tmp_path}/runs", f"track.tracking_uri=sqlite:///{tmp_path}/mlflow.db"]
    command = (
        "--working-dir",
        str(upload),
        "--",
        sys.executable,
        "jobs/train.py",
        "train.epochs=2",
        *settings,
    )
    since_ms = 1000 * time.time()
    submitted = ray_job(cluster, "submit", "--no-wait", "--submission-id", "job", *command)
    until_ms = 1000 * time.time()
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    done = ray_job(cluster, "logs", "--follow", "job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "result: " in done.stdout
    [result] = tmp_path.glob("runs/shoal/*/result.json")
    begun = json.loads(result.read_text())["goodput"]["attempts"][0]
    assert since_ms <= begun["at_ms"] <= until_ms, "goodput begins where the job was submitted"
    tags = json.loads((result.parent / "metadata.json").read_text())["tags"]
    assert tags["shoal.submission_id"] == "job"
    (kept,) = tmp_path.glob("runs/shoal/*/output/0001.txt")
    assert "result: " in kept.read_text(), "which outlives the head, unlike the job's log"
    # Ray deletes the upload, and its Makefile with it.
    assert f"look at it: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in done.stdout


@pytest.mark.long
def test_stopped_job_is_recorded_as_killed_and_leaves_nothing(
    cluster: dict[str, str], upload: Path, tmp_path: Path
) -> None:
    import ray
    from mlflow import MlflowClient
    from ray.util.state import list_placement_groups

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [
        "jobs/train.py",
        "train.epochs=100000",
        f"storage_path={tmp_path}/runs",
        f"track.tracking_uri={uri}",
    ]
    submitted = ray_job(
        cluster, "submit", "--no-wait", "--submission-id", f"stop-{os.getpid()}", "--working-dir", str(upload),
        "--", sys.executable, *command, "run_name=run",
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    folder = tmp_path / "runs" / "shoal" / "run"
    eventually(lambda: any((folder / "journal").glob("*.jsonl")), 90, "the job trains")
    eventually(lambda: (folder / "tracked.json").exists(), 20, "MLflow knows the run")
    stopped = ray_job(cluster, "stop", f"stop-{os.getpid()}")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    run_id = json.loads((folder / "tracked.json").read_text())["run_id"]
    client = MlflowClient(uri, uri)
    eventually(lambda: client.get_run(run_id).info.status == "KILLED", 30, "the run is KILLED")
    ray.init(cluster["address"], log_to_driver=False)
    try:
        eventually(
            lambda: all(group.state == "REMOVED" for group in list_placement_groups(cluster["address"])),
            30,
            "groups are freed",
        )
    finally:
        ray.shutdown()
