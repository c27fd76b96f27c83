"""A sweep in MLflow: a parent with a child per trial, the same however often and from wherever it is synced."""

import time

import pytest

from curves import add_trial, history, log_curve
from running import MOSTLY_SQLITE
from shoal.storage.records import Identity, Metadata
from shoal.storage.run_folder import TRIALS
from shoal.tracking.background import Tracker
from shoal.tracking.journal import Journal
from shoal.tracking.reaper import Reaper
from shoal.tracking.sweep_sync import SweepSync, make_sync, sync
from shoal.tracking.sync import LEASE_TAG, PARENT_TAG, REASON_TAG


def children(client, parent_id):
    experiment = client.get_run(parent_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent_id}'")
    return {run.info.run_name.split()[0]: run for run in found}


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


@MOSTLY_SQLITE
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


@MOSTLY_SQLITE
def test_the_tracker_reports_when_all_trials_were_synced(sweep):
    folder = sweep()
    tracker = Tracker(folder)
    tracker.start()
    assert tracker.close()
    assert tracker.synced_at_s == pytest.approx(time.time(), abs=60)


@MOSTLY_SQLITE
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
    assert {name.split()[0] for name in Reaper().reap(client)} >= {"sweep", "t0001"}
    found = children(client, sync.run_id)
    assert found["t0001"].info.status == "FAILED"
    assert "is gone" in found["t0001"].data.tags[REASON_TAG]
    assert found["t0000"].info.status == "FINISHED"


def test_a_live_sweep_that_was_reaped_says_running_again_with_its_open_trials(client, sweep):
    folder = sweep(("FINISHED", "RUNNING"), status="RUNNING")
    folder.acquire_lease()
    sync = SweepSync(folder)
    sync.open()
    sync.send_points()
    for run in children(client, sync.run_id).values():
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "FAILED")
    client.set_terminated(sync.run_id, "FAILED")
    sync.renew_lease()
    found = children(client, sync.run_id)
    assert {name: run.info.status for name, run in found.items()} == {"t0000": "FINISHED", "t0001": "RUNNING"}
    assert client.get_run(sync.run_id).info.status == "RUNNING"


@MOSTLY_SQLITE
def test_a_trial_whose_params_are_not_known_yet_waits(client, sweep):
    folder = sweep(("RUNNING",), status="RUNNING")
    folder.acquire_lease()
    folder.inner(f"{TRIALS}/t0000").delete(Metadata.file)
    sync = SweepSync(folder)
    sync.open()
    sync.send_points()
    assert children(client, sync.run_id) == {}


# Changed or deleted behind the sync's back.


def extended(folder):
    """Sync a sweep that went on, as its driver does: what was synced before is looked at, and skipped."""
    folder.update(Identity, status="RUNNING", end_ms=None)
    folder.acquire_lease()
    tracker = Tracker(folder)
    tracker.start()
    add_trial(folder, 2)
    folder.update(Identity, status="FINISHED")
    assert tracker.close(), tracker.problem
    folder.release_lease()
    return tracker.run_id


def assert_complete(client, parent, names=("t0000", "t0001", "t0002")):
    found = children(client, parent)
    assert set(found) == set(names)
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.data.params["optim.lr"] == str(int(name[1:]))
        assert [step for step, _, _ in history(client, run.info.run_id)] == [1, 2, 3]


@MOSTLY_SQLITE
def test_every_key_of_a_trials_point_is_a_param_of_its_run(client, sweep):
    found = children(client, sync(sweep()))
    assert found["t0001"].data.params == {
        "optim.lr": "1",
        "optim.betas": "[0.9, 0.95]",
        "train.ema": "null",
    }


@MOSTLY_SQLITE
def test_a_trial_that_failed_before_its_model_was_built_has_its_point_too(client, sweep):
    folder = sweep(("FINISHED", "FAILED"))
    folder.inner(f"{TRIALS}/t0001").delete(Metadata.file)
    assert children(client, sync(folder))["t0001"].data.params["optim.lr"] == "1"


@MOSTLY_SQLITE
@pytest.mark.parametrize("again", [sync, extended], ids=["synced", "extended"])
@pytest.mark.parametrize("takes_children_along", [True, False])
def test_a_parent_that_was_deleted_is_made_anew_with_all_its_children(
    client, sweep, again, takes_children_along
):
    folder = sweep()
    first = sync(folder)
    for run in children(client, first).values() if takes_children_along else ():
        client.delete_run(run.info.run_id)
    client.delete_run(first)
    add_trial(folder, 2)
    parent = again(folder)
    assert parent != first
    assert_complete(client, parent)
    assert folder.tracked().run_id == parent


@MOSTLY_SQLITE
@pytest.mark.parametrize("again", [sync, extended], ids=["synced", "extended"])
def test_a_child_that_was_deleted_is_made_anew(client, sweep, again):
    folder = sweep()
    parent = sync(folder)
    client.delete_run(children(client, parent)["t0001"].info.run_id)
    add_trial(folder, 2)
    assert again(folder) == parent
    assert_complete(client, parent)


def test_what_is_deleted_while_a_sweep_runs_is_made_anew(client, sweep):
    folder = sweep(("FINISHED", "RUNNING"), status="RUNNING")
    folder.acquire_lease()
    tracker = Tracker(folder, sync_every_s=0.05)
    tracker.start()
    wait_for(lambda: tracker.run_id and len(children(client, tracker.run_id)) == 2)
    first = tracker.run_id
    for run in children(client, first).values():
        client.delete_run(run.info.run_id)
    client.delete_run(first)
    folder.inner(f"{TRIALS}/t0001").update(Identity, status="FINISHED")
    folder.update(Identity, status="FINISHED")
    assert tracker.close(), tracker.problem
    assert tracker.run_id != first
    assert_complete(client, tracker.run_id, ("t0000", "t0001"))


@MOSTLY_SQLITE
def test_a_trial_whose_folder_was_deleted_and_that_was_trained_again_is_one_child(client, sweep):
    folder = sweep()
    parent = sync(folder)
    folder.delete(f"{TRIALS}/t0001")
    assert sync(folder) == parent
    assert_complete(client, parent, ("t0000", "t0001"))  # nothing has taken its place
    before = children(client, parent)["t0001"].info.run_id
    add_trial(folder, 1)
    assert extended(folder) == parent
    assert_complete(client, parent)
    assert children(client, parent)["t0001"].info.run_id != before


@MOSTLY_SQLITE
@pytest.mark.parametrize("again", [sync, extended], ids=["synced", "extended"])
def test_the_reason_of_an_earlier_attempt_goes_away(client, sweep, again):
    folder = sweep(("FINISHED", "FAILED"), status="KILLED")
    folder.update(Identity, reason="interrupted by SIGTERM")
    folder.inner(f"{TRIALS}/t0001").update(Identity, reason="interrupted")
    parent = sync(folder)
    trial = folder.inner(f"{TRIALS}/t0001")
    trial.update(Identity, status="FINISHED", reason=None)
    folder.update(Identity, status="FINISHED", reason=None)
    assert again(folder) == parent
    for run in [client.get_run(parent), *children(client, parent).values()]:
        assert run.info.status == "FINISHED"
        assert REASON_TAG not in run.data.tags


@MOSTLY_SQLITE
def test_a_child_that_another_process_closed_by_mistake_says_again_how_it_ended(client, sweep):
    folder = sweep()
    parent = sync(folder)
    run_id = children(client, parent)["t0001"].info.run_id
    client.set_tag(run_id, REASON_TAG, "the driver of this run is gone")
    client.set_terminated(run_id, "FAILED")
    extended(folder)
    assert_complete(client, parent)
    assert REASON_TAG not in client.get_run(run_id).data.tags


@MOSTLY_SQLITE
def test_once_a_sweep_is_marked_no_trial_of_it_is_opened_as_running(client, sweep):
    folder = sweep(("RUNNING",), status="RUNNING")
    folder.acquire_lease()
    sync = SweepSync(folder)
    sync.open()
    sync.send_points()
    sync.mark("KILLED", "interrupted by SIGTERM")
    add_trial(folder, 1, status="RUNNING")
    sync.send_points()
    assert {run.info.status for run in children(client, sync.run_id).values()} == {"KILLED"}
    assert client.get_run(sync.run_id).info.status == "KILLED"


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@MOSTLY_SQLITE
def test_the_folders_of_a_large_sweep_are_not_listed_at_each_poll_and_are_listed_at_the_end(
    client, sweep, monkeypatch
):
    folder = sweep(("FINISHED",))
    for number in range(1, 1200):
        folder.local(f"{TRIALS}/t{number:04d}").mkdir()
    listed: list[str] = []
    names = type(folder).names

    def counted(self, name=""):
        if name == TRIALS:
            listed.append(name)
            time.sleep(0.05)  # of a folder this large on a busy disk
        return names(self, name)

    monkeypatch.setattr(type(folder), "names", counted)
    sync = SweepSync(folder)
    sync.open()
    listed.clear()
    for _ in range(5):
        sync.send_points()
    assert len(listed) < 5
    listed.clear()
    sync.close()
    assert listed
