"""A sweep in MLflow: a parent with a child per trial, the same however often and from wherever it is synced."""

import time

import pytest

from curves import history, log_curve
from shoal.storage.records import Identity, Metadata
from shoal.storage.run_folder import REPORTS, TRIALS
from shoal.tracking.background import Tracker
from shoal.tracking.journal import Journal
from shoal.tracking.reaper import reap
from shoal.tracking.sweep_sync import SweepSync, make_sync, sync
from shoal.tracking.sync import LEASE_TAG, PARENT_TAG, REASON_TAG


@pytest.fixture
def sweep(run):
    """Make the folder of a sweep with trials, as `shoal.workflows.tune.sweep` leaves one."""

    def make(statuses=("FINISHED", "FINISHED"), status="FINISHED"):
        folder = run("sweep", status, is_sweep=True, end_ms=2_000_000_000_000)
        for number, one in enumerate(statuses):
            trial = folder.inner(f"{TRIALS}/t{number:04d}")
            trial.create_identity(
                name=f"t{number:04d}", experiment=folder.identity().experiment, point={"optim.lr": number}
            )
            trial.update(Identity, status=one, end_ms=2_000_000_000_000)
            trial.save(folder.load(Metadata).replace(params={"optim.lr": number}))
            log_curve(trial, range(1, 4))
        folder.write(f"{REPORTS}/report.html", b"<html></html>")
        return folder

    return make


def children(client, parent_id):
    experiment = client.get_run(parent_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent_id}'")
    return {run.info.run_name: run for run in found}


def test_each_trial_is_a_child_with_its_own_params_curve_and_status(client, sweep):
    folder = sweep(("FINISHED", "FAILED"))
    parent = sync(folder)
    found = children(client, parent)
    assert {name: run.info.status for name, run in found.items()} == {"t0000": "FINISHED", "t0001": "FAILED"}
    assert [run.data.params["optim.lr"] for run in found.values()] == [name[-1] for name in found]
    for run in found.values():
        assert [step for step, _, _ in history(client, run.info.run_id)] == [1, 2, 3]
    assert "report.html" in {item.path for item in client.list_artifacts(parent)}


def test_syncing_twice_changes_nothing_and_makes_no_child_twice(client, sweep):
    folder = sweep()
    parent = sync(folder)
    first = {name: (run.info.run_id, run.info.status) for name, run in children(client, parent).items()}
    for name in folder.names(TRIALS):
        folder.inner(f"{TRIALS}/{name}").update_tracked(run_id=None)
    assert sync(folder) == parent
    assert {
        name: (run.info.run_id, run.info.status) for name, run in children(client, parent).items()
    } == first


def test_a_trial_that_is_synced_again_within_one_session_is_the_same_child(client, sweep):
    folder = sweep()
    sync = make_sync(folder)
    sync.open()
    sync.send_points()
    trial = folder.inner(f"{TRIALS}/t0000")
    trial.update(Identity, registered_model_name="new")
    trial.update(Metadata, tags={"shoal.new": "yes"})
    sync.close()
    found = children(client, sync.run_id)
    assert len(found) == 2
    assert found["t0000"].data.tags["shoal.new"] == "yes"


def test_trials_that_were_synced_are_skipped_and_the_time_when_all_were_is_kept(client, sweep):
    folder = sweep(("FINISHED", "RUNNING"), status="RUNNING")
    folder.acquire_lease()
    sync = SweepSync(folder)
    sync.open()
    assert sync.send_points() == 6
    assert sync.synced_at_s is None
    Journal(folder.inner(f"{TRIALS}/t0000"), attempt=2).sync()
    log_curve(folder.inner(f"{TRIALS}/t0000"), range(4, 6), attempt=2)
    assert sync.send_points() == 0
    folder.inner(f"{TRIALS}/t0001").update(Identity, status="FINISHED")
    sync.send_points()
    assert sync.synced_at_s == pytest.approx(time.time(), abs=5)
    assert {run.info.status for run in children(client, sync.run_id).values()} == {"FINISHED"}


def test_the_tracker_reports_when_all_trials_were_synced(sweep):
    folder = sweep()
    tracker = Tracker(folder)
    tracker.start()
    assert tracker.close()
    assert tracker.synced_at_s == pytest.approx(time.time(), abs=60)


def test_a_sweep_whose_driver_died_is_closed_with_its_trials(client, sweep):
    folder = sweep(("FINISHED", "RUNNING"), status="RUNNING")
    parent = sync(folder)
    assert client.get_run(parent).info.status == "FAILED"
    found = children(client, parent)
    assert {name: run.info.status for name, run in found.items()} == {"t0000": "FINISHED", "t0001": "FAILED"}


def test_whoever_reaps_a_sweep_on_a_lost_host_reaps_its_trials_too(client, sweep, gone_process):
    folder = sweep(("FINISHED", "RUNNING"), status="RUNNING")
    folder.acquire_lease()
    sync = SweepSync(folder)
    sync.open()
    sync.send_points()
    client.set_tag(sync.run_id, LEASE_TAG, gone_process.model_dump_json())
    assert set(reap(client)) >= {"sweep", "t0001"}
    found = children(client, sync.run_id)
    assert found["t0001"].info.status == "FAILED"
    assert "is gone" in found["t0001"].data.tags[REASON_TAG]
    assert found["t0000"].info.status == "FINISHED"


def test_a_trial_whose_params_are_not_known_yet_waits(client, sweep):
    folder = sweep(("RUNNING",), status="RUNNING")
    folder.acquire_lease()
    folder.inner(f"{TRIALS}/t0000").delete(Metadata.file)
    sync = SweepSync(folder)
    sync.open()
    sync.send_points()
    assert children(client, sync.run_id) == {}
