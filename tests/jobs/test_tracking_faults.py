"""Jobs before an MLflow server that fails, with a closed standard output, and stopped by signals to all processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from sweeps import QUICK, children

from faulty_proxy import FaultyProxy, share_fails
from running import ROOT, Place, Server, eventually, mlflow_record

pytestmark = pytest.mark.long

ALONE = ("scale.num_workers=0", "run_name=run")
SWEEP = (*QUICK, "run_name=sweep", "model.width=32,64", "optim.warmup_steps=0,5")  # 0 is the default
LONG = ("train.epochs=100000", "run_name=sweep", "model.width=32,64", "checkpoint.every_steps=500")


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.uri) as made:
        yield made


def assert_complete(result: dict[str, Any]) -> None:
    """MLflow has all trials of SWEEP with params, curve and status, and the result says so."""
    found = children(result)
    assert set(found) == {row["name"] for row in result["rows"]}
    assert {status for status, _ in found.values()} == {"FINISHED"}
    assert all(any(key == "val/loss" for key, _ in history) for _, history in found.values())
    client = MlflowClient(result["tracking_uri"], result["tracking_uri"])
    parent = client.get_run(result["mlflow_run_id"])
    swept = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    points = {(run.data.params["model.width"], run.data.params["optim.warmup_steps"]) for run in swept}
    assert len(points) == 4
    assert result["records_complete"] is not None
    assert parent.data.tags["best.run_id"] == result["best"]["mlflow_run_id"]
    assert result["best"]["mlflow_run_id"] in {run.info.run_id for run in swept}


def test_a_sweep_on_a_server_is_complete_and_says_so(shared: Place, server: Server) -> None:
    done = shared.run("tune", *SWEEP, f"track.tracking_uri={server.uri}")
    assert done.code == 0, done.out + done.err
    assert "does not answer" not in done.err
    assert "View run" not in done.out
    assert_complete(done.result)


def test_a_sweep_whose_server_is_away_for_25_s_and_fails_a_third_of_its_calls(
    shared: Place, proxy: FaultyProxy
) -> None:
    proxy.fault = share_fails(0.3, seed=1)
    process = shared.start("tune", *SWEEP, f"track.tracking_uri={proxy.uri}", "train.epochs=40")
    eventually(lambda: bool(proxy.count("pass")["POST /api/2.0/mlflow/runs/create"]), 90, "a run in MLflow")
    proxy.away_for(25)
    done = shared.wait(process)
    assert done.code == 0, done.out + done.err
    assert "does not answer" not in done.err
    assert_complete(done.result)


def test_a_training_whose_server_fails_a_third_of_its_calls_registers_its_model(
    place: Place, server: Server, proxy: FaultyProxy
) -> None:
    proxy.fault = share_fails(0.3, seed=2)
    uri = f"track.tracking_uri={proxy.uri}"
    done = place.run("train", *ALONE, "train.epochs=4", uri, "track.registered_model_name=digits")
    assert done.code == 0, done.out + done.err
    assert "does not answer" not in done.err
    client = MlflowClient(server.uri, server.uri)
    version = client.get_model_version_by_alias("digits", "champion")
    assert version.run_id == done.result["mlflow_run_id"]
    run, history = mlflow_record(server.uri, version.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.outputs.model_outputs) == 1
    assert any(key == "test/loss" for key, _ in history)


# Standard output.


def in_shell(place: Place, job: str, *arguments: str, ends: str) -> int:
    """Run a job with what a shell does to its output; return the exit code."""
    command = f'set -o pipefail; "$@" {ends}'
    job_and_arguments = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *job_and_arguments],
        cwd=place.path,
        env=place.env,
        capture_output=True,
    )
    return done.returncode


@pytest.mark.parametrize("ends", ["2>&1 | head -1", "> /dev/full 2> /dev/full", ">&- 2>&-"])
def test_a_closed_or_full_output_stops_no_training(place: Place, ends: str) -> None:
    assert in_shell(place, "train", *ALONE, "train.epochs=3", ends=ends) == 0
    result = json.loads(place.folder("run").read("result.json"))
    assert result["status"] == "FINISHED"
    assert result["is_verified"]
    assert in_shell(place, "train", "optim.lr=-1", *ALONE, ends=ends) == 2


def test_a_closed_output_fails_no_trial(shared: Place) -> None:
    assert in_shell(shared, "tune", *SWEEP, ends="| head -1") == 0
    result = json.loads(shared.folder("sweep").read("result.json"))
    assert result["trials"] == {"planned": 4, "ended": 4, "finished": 4}


# Signals.


def statuses(place: Place, run: str) -> dict[str, str]:
    """Status by name of all runs in MLflow of a run's experiment."""
    uri = f"sqlite:///{place.path}/mlflow.db"
    client = MlflowClient(uri, uri)
    experiment = client.get_run(str(place.folder(run).tracked().run_id)).info.experiment_id
    return {found.info.run_name: found.info.status for found in client.search_runs([experiment])}


def wait_until_trials_are_tracked(place: Place, process: "subprocess.Popen[str]") -> None:
    def is_so() -> bool:
        assert process.poll() is None, process.communicate()
        return len(list((place.path / "runs").glob("*/sweep/trials/*/tracked.json"))) == 2

    eventually(is_so, 120, "two trials in MLflow")


def test_a_hang_up_leaves_a_checkpoint_and_a_killed_run(place: Place) -> None:
    process = place.start("train", *ALONE, "train.epochs=100000")
    place.wait_for_step(process, "run", 200)
    eventually(lambda: place.folder("run").tracked().run_id is not None, 60, "a run in MLflow")
    process.send_signal(signal.SIGHUP)
    done = place.wait(process)
    assert done.code == 130, done.out + done.err
    assert place.folder("run").names("checkpoints")
    assert statuses(place, "run") == {"run": "KILLED"}


def test_nohup_keeps_a_hang_up_from_a_job(place: Place) -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, str(ROOT / "jobs/train.py"), *ALONE, "train.epochs=20"],
        cwd=place.path,
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    place.wait_for_step(process, "run", 1)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err


def test_a_sweep_stopped_as_ray_job_stop_does_it_is_killed_with_all_its_trials(shared: Place) -> None:
    """SIGTERM to the job and all below it, and 3 s later SIGKILL."""
    process = shared.start("tune", *LONG)
    wait_until_trials_are_tracked(shared, process)
    job = psutil.Process(process.pid)
    everyone = [job, *job.children(recursive=True)]
    for one in everyone:
        one.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=3)
    for one in alive:
        one.kill()
    process.communicate()
    eventually(lambda: set(statuses(shared, "sweep").values()) == {"KILLED"}, 60, "all runs are KILLED")
    assert len(statuses(shared, "sweep")) == 3


def test_a_sweep_whose_whole_process_group_is_terminated_is_killed_with_all_its_trials(place: Place) -> None:
    """Here with a Ray cluster of its own, which is in that group."""
    command = [sys.executable, str(ROOT / "jobs/tune.py"), *LONG]
    process = subprocess.Popen(
        command,
        cwd=place.path,
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until_trials_are_tracked(place, process)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, out + err
    assert set(statuses(place, "sweep").values()) == {"KILLED"}
