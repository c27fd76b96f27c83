"""Sweeps as users run them: repeatable, comparable in MLflow, and none the worse for what is killed."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from conftest import ROOT, Place, eventually, mlflow_record

CONFIG = str(ROOT / "jobs/configs/tune.yaml")
QUICK = ("train.epochs=6", "data.global_batch_size=32")

MINE = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs, mood="fine"):
        super().__init__()
        self.mood = mood
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training and self.mood == "raise":
            raise ValueError("in a bad mood")
        if self.training and self.mood == "vanish":
            os.kill(os.getpid(), 9)
        if self.training and self.mood == "hungry":
            torch.empty(2**60)
        return self.layer(x) * (float("nan") if self.mood == "nan" else 1.0)

def broken(inputs, outputs, width):
    raise KeyError("nothing works")
"""


def sweep(place: Place, *arguments: str, **env: str) -> dict[str, Any]:
    done = place.run("tune", *arguments, **env)
    assert done.code == 0, done.out + done.err
    return done.result


def points(result: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on circumstances: each trial's point, status, curve and metric."""
    kept = ("params", "status", "metric", "steps", "curve", "reason")
    return {row["name"]: {key: row[key] for key in kept} for row in result["rows"]}


def children(result: dict[str, Any]) -> dict[str, tuple[str, dict[tuple[str, int], float]]]:
    """Status and metric history of each child in MLflow, by name; no name may be there twice."""
    from mlflow import MlflowClient

    uri, parent = result["tracking_uri"], result["mlflow_run_id"]
    client = MlflowClient(uri, uri)
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), f"some are there twice: {sorted(names)}"
    assert not client.search_runs([experiment], "attributes.status = 'RUNNING'")
    return {run.info.run_name: (run.info.status, mlflow_record(uri, run.info.run_id)[1]) for run in found}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`make tune`, in a place and a Ray cluster of its own."""
    place = Place(tmp_path_factory.mktemp("tune"), {})
    place.first = place.run("tune", CONFIG)  # type: ignore[attr-defined]
    return place


def test_the_default_sweep_ends_with_its_best_model_registered_and_all_in_mlflow(twin: Place) -> None:
    from mlflow import MlflowClient

    done = twin.first  # type: ignore[attr-defined]
    assert done.code == 0, done.out + done.err
    result = done.result
    assert result["trials"]["ended"] == 16
    assert {"finished", "stopped"} <= set(result["trials"])
    assert result["best"]["metrics"]["test/accuracy"] > 0.93
    assert result["best"]["is_verified"]
    assert "(16/16 trials" in done.out
    found = children(result)
    assert len(found) == 16
    for row in result["rows"]:
        status, history = found[row["name"]]
        assert status == "FINISHED"
        assert [history["val/loss", step] for step, _ in row["curve"]] == [value for _, value in row["curve"]]
        assert max(step for key, step in history if key == "train/loss") == row["steps"]
    uri = result["tracking_uri"]
    client = MlflowClient(uri, uri)
    parent = client.get_run(result["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["optim.lr"] == "loguniform(0.0001, 0.1)"
    assert parent.data.tags["best.trial"] == result["best"]["trial"]
    assert float(parent.data.metrics["best/val_loss"]) == pytest.approx(result["best"]["value"])
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "trials.csv", "trials.parquet", "pictures", "result.json"} <= artifacts
    pictures = {item.path for item in client.list_artifacts(parent.info.run_id, "pictures")}
    assert len(pictures) == 7
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == result["best"]["mlflow_run_id"]


def test_the_losers_checkpoints_are_freed_and_the_table_has_every_trial(twin: Place) -> None:
    result = twin.first.result  # type: ignore[attr-defined]
    folder = Path(result["run_folder"])
    kept = [path.parent.name for path in folder.glob("trials/*/checkpoints")]
    assert kept == [result["best"]["trial"]]
    table = pd.read_csv(folder / "report" / "trials.csv")
    assert len(table) == 16
    assert set(table["model.width"]) == {32, 64, 128, 256}
    assert pd.read_parquet(folder / "report" / "trials.parquet")["optim.lr"].between(1e-4, 1e-1).all()


def test_one_trial_at_a_time_gives_the_very_same_sweep(twin: Place, shared: Place) -> None:
    result = sweep(shared, CONFIG, "tune.max_concurrent_trials=1")
    assert points(result) == points(twin.first.result)  # type: ignore[attr-defined]


@pytest.mark.chaos
def test_a_killed_driver_is_resumed_by_the_same_command_as_if_nothing_had_happened(
    twin: Place, place: Place
) -> None:
    process = place.start("tune", CONFIG)
    trials = place.path / "runs" / "digits-sweep"

    def has_begun() -> bool:
        return len(list(trials.glob("*/trials/*/result.json"))) >= 4 and process.poll() is None

    eventually(has_begun, 90, "four trials have ended")
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()

    def is_gone() -> bool:
        return not any(
            one.is_running() and "Trial" in " ".join(one.cmdline()) for one in below if is_there(one)
        )

    eventually(is_gone, 30, "no trial goes on")
    seen = time.time()
    done = place.run("tune", CONFIG)
    assert done.code == 0, done.out + done.err
    result, expected = done.result, twin.first.result  # type: ignore[attr-defined]
    assert points(result) == points(expected)
    assert children(result) == children(expected)
    assert any((trials / result["run_name"] / "trials" / name / "result.json").stat().st_mtime < seen
               for name in points(result)), "what was finished is not run again"  # fmt: skip


def is_there(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.chaos
def test_an_interrupt_closes_every_run_and_the_sweep_is_extended_and_finished_later(shared: Place) -> None:
    command = (
        *QUICK,
        "train.epochs=30",
        "optim.lr=loguniform(1e-4,1e-2)",
        "run_name=sweep",
        "model.width=64,128",
    )
    process = shared.start("tune", *command, "tune.num_samples=2")
    folder = shared.folder("sweep")
    eventually(lambda: bool(list((shared.path / "runs").rglob("0001.jsonl"))), 60, "a trial trains")
    process.send_signal(signal.SIGINT)
    done = shared.wait(process)
    assert done.code == 130, done.out + done.err
    result = json.loads(folder.read("result.json"))
    assert result["status"] == "KILLED"
    assert {status for status, _ in children(result).values()} <= {"KILLED", "FINISHED"}
    finished = sweep(shared, *command, "tune.num_samples=3")
    assert finished["trials"] == {"planned": 6, "ended": 6, "finished": 6}
    assert len(children(finished)) == 6
    again = shared.run("tune", *command, "tune.num_samples=3")
    assert "is finished" in again.out


def test_trials_of_two_workers_each_end_early_and_free_what_they_held(
    shared: Place, cluster: dict[str, str]
) -> None:
    import ray
    from ray.util.state import list_placement_groups

    two = ("scale.num_workers=2", "scale.cpus_per_worker=0.5")
    result = sweep(shared, *QUICK, *two, "optim.lr=0.003,0.00001", "tune.scheduler=asha")
    assert {row["name"]: row["status"] for row in result["rows"]} == {"t0000": "finished", "t0001": "stopped"}
    ray.init(cluster["address"], log_to_driver=False)
    try:
        assert all(group.state == "REMOVED" for group in list_placement_groups(limit=1000))
    finally:
        ray.shutdown()


def test_trials_that_fail_each_in_their_way_are_told_apart_and_stop_nothing(shared: Place) -> None:
    (shared.path / "mine.py").write_text(MINE)
    moods = "model.args.mood=fine,nan,raise,vanish,hungry"
    result = sweep(shared, *QUICK, "model.name=mine:Net", moods, "scale.max_failures=0")
    status = {row["params"]["model.args.mood"]: row["status"] for row in result["rows"]}
    assert status == {
        "fine": "finished", "nan": "infeasible", "raise": "failed", "vanish": "failed", "hungry": "infeasible",
    }  # fmt: skip
    rows = {row["params"]["model.args.mood"]: row for row in result["rows"]}
    assert "DivergedError" in rows["nan"]["error"]
    assert rows["raise"]["error"] == "ValueError: in a bad mood"
    assert "bad mood" in Path(rows["raise"]["log"]).read_text()
    assert "lost" in rows["vanish"]["error"]
    found = children(result)
    assert {found[row["name"]][0] for row in result["rows"] if row["status"] != "finished"} == {"FAILED"}


def test_an_error_of_the_user_ends_the_sweep_after_the_first_few_with_that_error(shared: Place) -> None:
    (shared.path / "mine.py").write_text(MINE)
    done = shared.run(
        "tune", *QUICK, "model.name=mine:Net", "model.args.mood=raise", "optim.lr=uniform(0.1,1)"
    )
    assert done.code == 1, done.out + done.err
    assert len(done.errors) == 1
    assert "failed alike: ValueError: in a bad mood" in done.errors[0]
    assert done.out.count(" failed ") <= 4


@pytest.mark.parametrize(
    "settings",
    [
        ("tune.scheduler=pbt", "optim.lr=loguniform(1e-5,1e-1)", "tune.num_samples=4"),
        (
            "tune.search=optuna",
            "optim.lr=loguniform(1e-5,1e-1)",
            "tune.num_samples=4",
            "tune.repeat=2",
            "tune.scheduler=median",
        ),
    ],
    ids=lambda settings: settings[0],
)
def test_schedulers_and_searches_come_to_an_end(shared: Place, settings: tuple[str, ...]) -> None:
    result = sweep(shared, *QUICK, *settings)
    assert result["trials"]["planned"] == len(result["rows"]) == len(children(result))
    assert all(row["metric"] is not None for row in result["rows"])
    if "tune.repeat=2" in settings:
        numbers = [row["point"] for row in sorted(result["rows"], key=lambda row: row["number"])]
        assert numbers == [0, 0, 1, 1, 2, 2, 3, 3]
        assert "over 2 seeds" in result["findings"]["best point"]
    if "tune.scheduler=pbt" in settings:
        lineages = list(Path(result["run_folder"]).glob("trials/*/lineage.json"))
        assert lineages
        entry = json.loads(lineages[0].read_text())[0]
        assert entry["from"] != lineages[0].parent.name


def test_a_time_budget_hands_over_the_best_so_far(shared: Place) -> None:
    command = (
        "optim.lr=0.01,0.001,0.0001",
        "train.epochs=150",
        "run_name=sweep",
        "tune.max_concurrent_trials=1",
    )
    done = shared.run("tune", *command, "tune.time_budget_s=10")
    assert done.code == 0, done.out + done.err
    first = done.result
    assert first["is_out_of_time"]
    assert first["trials"]["ended"] < 3
    assert first["best"]["is_verified"]
    assert {status for status, _ in children(first).values()} <= {"FINISHED", "KILLED"}


def test_a_dry_run_foresees_the_sweep_and_starts_nothing(twin: Place, tmp_path: Path) -> None:
    place = Place(tmp_path, {})
    done = place.run("tune", CONFIG, "dry_run=true")
    assert done.code == 0, done.err
    lines = dict(line.split(None, 1) for line in done.out.splitlines() if line[:1].isalpha())
    result = twin.first.result  # type: ignore[attr-defined]
    assert int(lines["trials"]) == 16
    assert float(lines["worker-hours"].split()[0]) == pytest.approx(result["worker_hours"], rel=0.6)
    assert list(tmp_path.iterdir()) == []


BAD = {
    "unknown key": (["optim.lrr=0.1,0.2"], ["'optim.lrr'", "did you mean 'optim.lr'"]),
    "zero in a logarithmic range": (["optim.lr=loguniform(0,0.1)"], ["optim.lr", "zero"]),
    "empty choice": (["optim.name=choice()"], ["optim.name", "empty"]),
    "unknown metric": (["tune.metric=val/auc"], ["val/auc", "never reported", "val/accuracy"]),
    "too many workers": (["scale.num_workers=64"], ["64", "scale.cpus_per_worker"]),
    "negative samples": (["tune.num_samples=-3"], ["tune.num_samples=-3"]),
    "value out of bounds": (["optim.lr=0.1,-0.1"], ["optim.lr=-0.1", "greater than 0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_tuning_refuses(place: Place, case: str) -> None:
    arguments, words = BAD[case]
    done = place.run("tune", *arguments)
    assert done.code == 2, done.out + done.err
    assert len(done.err.splitlines()) == len(done.errors) == 1, done.err
    for word in words:
        assert word in done.errors[0]
    assert list(place.path.iterdir()) == []
