"""Calls to an MLflow server fail now and then, or for a while: the record is complete afterwards, each thing once."""

import json
import time

import pytest

from curves import history, log_curve
from faulty_proxy import FaultyProxy, each_first_call_fails, no_fault, share_fails
from shoal.registry.client import connect
from shoal.storage.records import Identity, Metadata, Result
from shoal.storage.run_folder import TRIALS
from shoal.tracking import background
from shoal.tracking.background import Tracker
from shoal.tracking.sweep_sync import sync
from shoal.tracking.sync import KEY_TAG, LEASE_TAG, PARENT_TAG

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def mlflow_store(mlflow_server):
    return mlflow_server.uri


@pytest.fixture
def proxy(mlflow_server, monkeypatch):
    monkeypatch.setattr(background, "RETRY_S", (0.05, 0.1))
    with FaultyProxy(mlflow_server.uri) as made:
        yield made


def behind(proxy, folder):
    folder.update(Identity, tracking_uri=proxy.uri)
    return folder


def record(client, run_id):
    """What MLflow has of a run, apart from its ids."""
    run = client.get_run(run_id)
    own = (KEY_TAG, PARENT_TAG, LEASE_TAG, "mlflow.runName")
    tags = {key: text for key, text in run.data.tags.items() if key not in own}
    inputs = [given.dataset.digest for given in run.inputs.dataset_inputs]
    artifacts = {item.path for item in client.list_artifacts(run_id)}
    points = [point[:2] for point in history(client, run_id)]
    return run.info.run_name, run.info.status, run.data.params, tags, inputs, artifacts, points


def runs_of(client, folder):
    """All active runs of a folder's experiment, by name; each is there once."""
    experiment = client.get_experiment_by_name(folder.identity().experiment)
    found = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name.split()[0] for run in found]
    assert len(names) == len(set(names)), names
    return {run.info.run_name.split()[0]: run for run in found}


def tracked_while_it_lasts(folder):
    """Sync a run that is trained and ends, as its driver does."""
    folder.acquire_lease()
    tracker = Tracker(folder, sync_every_s=0.05)
    tracker.start()
    log_curve(folder, range(4, 9), attempt=2)
    folder.update(Identity, status="FINISHED")
    is_complete = tracker.close()
    folder.release_lease()
    assert is_complete, tracker.problem
    return tracker


@pytest.mark.parametrize("action", ["error", "reset", "lost"])
def test_the_first_call_of_each_kind_fails_once(mlflow_server, proxy, run, action):
    client = connect(mlflow_server.uri)
    folder, twin = behind(proxy, run("run", status="RUNNING")), run("twin", status="RUNNING")
    for one in (folder, twin):
        log_curve(one, range(1, 4))
    proxy.fault = each_first_call_fails(action)
    tracker, expected = tracked_while_it_lasts(folder), tracked_while_it_lasts(twin)
    assert sum(proxy.count(action).values()) >= 8  # all kinds of calls were made
    found = record(client, tracker.run_id)
    assert found[1:] == record(client, expected.run_id)[1:]
    assert found[1] == "FINISHED"
    assert len(found[-1]) == 8
    assert set(runs_of(client, folder)) == {"run", "twin"}
    assert json.loads(folder.read(Result.file))["mlflow_run_id"] == tracker.run_id


@pytest.mark.parametrize("seed", [1, 2])
def test_a_sweep_is_complete_although_a_third_of_all_calls_fails(mlflow_server, proxy, sweep, seed):
    client = connect(mlflow_server.uri)
    folder = behind(proxy, sweep(("FINISHED", "FAILED") * 5, status="RUNNING"))
    proxy.fault = share_fails(0.3, seed, actions=("error", "reset", "lost"))
    tracker = tracked_while_it_lasts(folder)
    found = runs_of(client, folder)
    parent = found.pop("sweep")
    assert parent.info.status == "FINISHED"
    assert sorted(found) == [f"t{number:04d}" for number in range(10)]
    for number, child in enumerate(found[name] for name in sorted(found)):
        assert child.info.status == ("FINISHED", "FAILED")[number % 2]
        assert child.data.params == {
            "optim.lr": str(number),
            "optim.betas": "[0.9, 0.95]",
            "train.ema": "null",
        }
        assert child.data.tags[PARENT_TAG] == parent.info.run_id
        assert len(history(client, child.info.run_id)) == 3
    result = json.loads(folder.read(Result.file))
    assert result["records_complete"] == tracker.synced_at_s
    assert result["mlflow_run_id"] == parent.info.run_id


def test_a_server_that_is_away_for_a_while_misses_nothing(mlflow_server, proxy, sweep):
    client = connect(mlflow_server.uri)
    folder = behind(proxy, sweep(("FINISHED", "RUNNING", "RUNNING"), status="RUNNING"))
    folder.acquire_lease()
    tracker = Tracker(folder, sync_every_s=0.05)
    tracker.start()
    wait_until_open(tracker, proxy)
    proxy.away_for(4.0)
    for name in ("t0001", "t0002"):
        trial = folder.inner(f"{TRIALS}/{name}")
        log_curve(trial, range(4, 9), attempt=2)
        trial.update(Identity, status="FINISHED")
    folder.update(Identity, status="FINISHED")
    assert tracker.close()
    found = runs_of(client, folder)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert [len(history(client, found[name].info.run_id)) for name in ("t0000", "t0001", "t0002")] == [
        3,
        8,
        8,
    ]
    assert json.loads(folder.read(Result.file))["records_complete"] is not None


def wait_until_open(tracker, proxy):
    until = time.monotonic() + 60
    while tracker.problem or not proxy.count()["POST /api/2.0/mlflow/runs/update"]:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_server_that_stays_away_leaves_the_record_incomplete_and_a_sync_completes_it(
    mlflow_server, proxy, sweep, monkeypatch
):
    monkeypatch.setattr(background, "CLOSE_LOST_S", 0.3)
    folder = behind(proxy, sweep(status="RUNNING"))
    proxy.fault = each_first_call_fails("error")
    folder.acquire_lease()
    tracker = Tracker(folder, sync_every_s=0.05)
    tracker.start()
    wait_until_open(tracker, proxy)
    proxy.go_away()
    folder.inner(f"{TRIALS}/t0001").update(Identity, registered_model_name="new")  # one is to be synced again
    folder.update(Identity, status="FINISHED")
    assert tracker.close() is False
    folder.release_lease()
    assert json.loads(folder.read(Result.file)).get("records_complete") is None
    proxy.come_back()
    proxy.fault = share_fails(0.3, seed=3)
    sync(folder)
    proxy.fault = no_fault
    client = connect(mlflow_server.uri)
    assert {run.info.status for run in runs_of(client, folder).values()} == {"FINISHED"}
    assert json.loads(folder.read(Result.file))["records_complete"] is not None


def test_one_damaged_trial_does_not_keep_the_others_and_the_status_from_mlflow(
    mlflow_server, sweep, monkeypatch
):
    monkeypatch.setattr(background, "CLOSE_LOST_S", 0.3)
    client = connect(mlflow_server.uri)
    folder = sweep(("FINISHED",) * 3, status="RUNNING")
    folder.inner(f"{TRIALS}/t0001").write(Metadata.file, b"{")
    folder.acquire_lease()
    tracker = Tracker(folder, sync_every_s=0.05)
    tracker.start()
    folder.update(Identity, status="FINISHED")
    assert tracker.close() is False
    assert "is damaged" in tracker.problem
    found = runs_of(client, folder)
    assert {found[name].info.status for name in ("sweep", "t0000", "t0002")} == {"FINISHED"}
