import time

import pytest

from curves import history, log_curve
from running import MOSTLY_SQLITE
from shoal.errors import LeaseLostError
from shoal.storage.lease import renewed
from shoal.storage.records import Identity, JournalPosition, Lease, Metadata, Result, Tracked
from shoal.storage.run_folder import CONFIG, JOURNAL, PICTURES, PROFILE
from shoal.tracking import reaper as reaper_module
from shoal.tracking.journal import Journal
from shoal.tracking.reaper import Reaper, parse_lease
from shoal.tracking.sweep_sync import sync
from shoal.tracking.sync import KEY_TAG, LEASE_TAG, REASON_TAG, RunSync


def outcome(client, run_id):
    """Everything MLflow holds of a run."""
    found = client.get_run(run_id)
    artifacts = {item.path for item in client.list_artifacts(run_id)}
    artifacts |= {item.path for item in client.list_artifacts(run_id, PICTURES)}
    return {
        "info": (found.info.run_name, found.info.status, found.info.start_time, found.info.end_time),
        "params": found.data.params,
        "tags": found.data.tags,
        "history": history(client, run_id),
        "inputs": [(given.dataset.name, given.dataset.digest) for given in found.inputs.dataset_inputs],
        "artifacts": artifacts,
    }


def test_a_run_folder_becomes_a_run_with_all_it_holds(client, run):
    folder = run(end_ms=2_000_000_000_000)
    log_curve(folder, range(1, 6))
    found = outcome(client, sync(folder))
    identity = folder.identity()
    assert found["info"] == ("run", "FINISHED", identity.start_ms, 2_000_000_000_000)
    assert found["params"] == {"optim.lr": "0.001", "model.name": "mlp"}
    assert found["tags"][KEY_TAG] == identity.key
    assert found["tags"]["shoal.num_workers"] == "2"
    assert found["history"] == [(step, 1 / step, 1_000_000_000_000 + step * 1000) for step in range(1, 6)]
    assert found["inputs"] == [("sklearn:digits", "0123456789abcdef")]
    assert found["artifacts"] == {CONFIG, Metadata.file, Result.file, PICTURES, f"{PICTURES}/loss_curve.png"}


@MOSTLY_SQLITE
def test_a_profilers_trace_is_uploaded_as_it_is(client, run):
    folder = run()
    folder.write(f"{PROFILE}/trace.json.gz", b"\x1f\x8bpacked")
    run_id = sync(folder)
    assert [item.path for item in client.list_artifacts(run_id, PROFILE)] == [f"{PROFILE}/trace.json.gz"]
    assert client.list_artifacts(run_id, PROFILE)[0].file_size == 8


@MOSTLY_SQLITE
@pytest.mark.parametrize("forgets", [None, "position", "run id", "both"])
def test_synchronising_twice_has_the_same_outcome_whatever_was_forgotten_in_between(client, run, forgets):
    folder = run(end_ms=2_000_000_000_000)
    log_curve(folder, range(1, 6))
    run_id = sync(folder)
    first = outcome(client, run_id)
    if forgets in ("position", "both"):
        folder.delete(f"{JOURNAL}/{JournalPosition.file}")
    if forgets in ("run id", "both"):
        folder.update_tracked(run_id=None)
    assert sync(folder) == run_id
    assert outcome(client, run_id) == first


@MOSTLY_SQLITE
def test_a_run_is_found_again_by_its_key_not_by_its_name(client, run):
    one, other = run("same"), run("other")
    other.update(Identity, name="same")
    first, second = sync(one), sync(other)
    assert first != second
    one.update_tracked(run_id=None)
    assert sync(one) == first


def test_a_run_that_was_deleted_in_mlflow_is_made_anew_with_all_points(client, run):
    folder = run()
    log_curve(folder, range(1, 6))
    first = sync(folder)
    client.delete_run(first)
    second = sync(folder)
    assert second != first
    assert [step for step, _, _ in history(client, second)] == [1, 2, 3, 4, 5]
    assert folder.tracked().run_id == second


def test_an_experiment_that_was_deleted_comes_back(client, run):
    folder = run()
    sync(folder)
    experiment = client.get_experiment_by_name(folder.identity().experiment)
    client.delete_experiment(experiment.experiment_id)
    run_id = sync(folder)
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "active"
    assert client.get_run(run_id).info.status == "FINISHED"


@MOSTLY_SQLITE
def test_a_crash_and_a_replay_end_with_the_curve_of_an_uninterrupted_run(client, run):
    disturbed, twin = run("disturbed"), run("twin")
    log_curve(twin, range(1, 11))
    log_curve(disturbed, range(1, 8))
    early = RunSync(disturbed)
    early.open()
    early.send_points()
    log_curve(disturbed, range(6, 11), attempt=2)
    curves = [[point[:2] for point in history(client, sync(folder))] for folder in (disturbed, twin)]
    assert curves[0] == curves[1]


@MOSTLY_SQLITE
def test_points_go_out_once_each_and_more_than_one_batch_of_them(client, run):
    folder = run()
    log_curve(folder, range(1, 1202))
    sync = RunSync(folder)
    sync.open()
    assert sync.send_points() == 1201
    assert sync.send_points() == 0
    log_curve(folder, range(1202, 1205), attempt=2)
    assert sync.send_points() == 3
    assert client.get_run(sync.run_id).data.metrics["train/loss"] == 1 / 1204


@MOSTLY_SQLITE
def test_points_that_mlflow_did_not_accept_are_sent_the_next_time(client, run, monkeypatch):
    folder = run()
    log_curve(folder, range(1, 4))
    sync = RunSync(folder)
    sync.open()
    with monkeypatch.context() as broken:
        broken.setattr(type(sync.client), "log_batch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sync.send_points()
    assert not folder.exists(f"{JOURNAL}/{JournalPosition.file}")
    assert sync.send_points() == 3
    assert len(history(client, sync.run_id)) == 3


def test_numbers_that_are_not_finite_are_taken(client, run):
    folder = run()
    log_curve(folder, [1], value=lambda step: float("nan"))
    log_curve(folder, [2], attempt=2, value=lambda step: float("inf"))
    run_id = sync(folder)
    assert [step for step, _, _ in history(client, run_id)] == [1, 2]
    assert sync(folder) == run_id
    assert len(history(client, run_id)) == 2


@MOSTLY_SQLITE
def test_a_run_that_failed_or_was_killed_says_so_and_why(client, run):
    for status in ("FAILED", "KILLED"):
        found = client.get_run(sync(run(status.lower(), status, reason="no memory")))
        assert found.info.status == status
        assert found.data.tags[REASON_TAG] == "no memory"


@MOSTLY_SQLITE
def test_a_folder_whose_driver_died_without_a_word_is_no_running_run(client, run, gone_process):
    folder = run(status="RUNNING")
    folder.save(gone_process, inside="attempts/0001")
    assert client.get_run(sync(folder)).info.status == "FAILED"


@MOSTLY_SQLITE
@pytest.mark.parametrize("damage", [b"", b'{"run_id": "0', b"[]"])
def test_a_damaged_record_of_tracking_is_dropped_with_a_warning_and_found_out_again(
    client, run, caplog, damage
):
    folder = run(end_ms=2_000_000_000_000)
    log_curve(folder, range(1, 6))
    run_id = sync(folder)
    first = outcome(client, run_id)
    folder.write(Tracked.file, damage)
    folder.write(f"{JOURNAL}/{JournalPosition.file}", damage)
    assert sync(folder) == run_id
    assert outcome(client, run_id) == first
    assert folder.tracked().run_id == run_id
    for name in (Tracked.file, JournalPosition.file):
        assert any(f"{name}' is damaged" in message for message in caplog.messages)


@MOSTLY_SQLITE
def test_metadata_of_an_earlier_version_is_uploaded_under_its_name(client, run):
    folder = run()
    folder.write("facts.json", folder.read(Metadata.file))
    folder.delete(Metadata.file)
    found = outcome(client, sync(folder))
    assert "facts.json" in found["artifacts"]
    assert Metadata.file not in found["artifacts"]
    assert found["params"] == {"optim.lr": "0.001", "model.name": "mlp"}


# Reaping.


def running(client, folder, lease):
    """A run that says RUNNING in MLflow, led by the process of a lease."""
    sync = RunSync(folder)
    sync.open()
    if lease is not None:
        client.set_tag(sync.run_id, LEASE_TAG, lease.model_dump_json())
    return sync.run_id


@MOSTLY_SQLITE
@pytest.mark.parametrize("clock_s", [-7200, 0, 7200])
def test_only_runs_whose_process_is_gone_are_reaped(client, run, gone_process, monkeypatch, clock_s):
    """One of another host is gone if its lease does not change between two looks, whatever its clock says."""
    monkeypatch.setattr(reaper_module, "LEASE_S", 0.1)
    own = run("own", status="RUNNING")
    own.acquire_lease()
    mine, then = own.holder(), int((time.time() + clock_s) * 1000)
    elsewhere = Lease(host="elsewhere pid:[1]", pid=1, started="1.00", beat_ms=then)
    runs = {
        "dead here": running(client, run("a", status="RUNNING"), gone_process),
        "silent elsewhere": running(client, run("b", status="RUNNING"), elsewhere),
        "alive here": running(client, own, mine),
        "alive elsewhere": running(client, run("c", status="RUNNING"), elsewhere),
        "without a lease": running(client, run("d", status="RUNNING"), None),
        "with a lease of another format": running(client, run("e", status="RUNNING"), None),
    }
    client.set_tag(runs["with a lease of another format"], LEASE_TAG, "[1")
    finished = sync(run("f"))
    client.set_tag(finished, LEASE_TAG, gone_process.model_dump_json())
    reaper = Reaper()
    assert "a" in reaper.reap(client)
    assert reaper.reap(client) == []
    client.set_tag(runs["alive elsewhere"], LEASE_TAG, renewed(elsewhere).model_dump_json())
    time.sleep(0.15)
    assert "b" in reaper.reap(client)
    status = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert status.pop("dead here") == status.pop("silent elsewhere") == "FAILED"
    assert set(status.values()) == {"RUNNING"}
    assert client.get_run(finished).info.status == "FINISHED"
    assert "is gone" in client.get_run(runs["dead here"]).data.tags[REASON_TAG]
    assert reaper.reap(client) == Reaper().reap(client) == []
    client.set_terminated(runs["alive elsewhere"])


def test_a_live_run_renews_its_lease_in_mlflow(client, run):
    folder = run(status="RUNNING")
    folder.acquire_lease()
    sync = RunSync(folder)
    sync.open()
    folder.renew_lease()
    sync.renew_lease()
    assert parse_lease(client.get_run(sync.run_id).data.tags[LEASE_TAG]) == folder.holder()
    assert folder.holder().beat == 1


def test_a_live_run_that_another_process_closed_says_running_again_and_one_that_ended_does_not(client, run):
    folder = run(status="RUNNING")
    folder.acquire_lease()
    sync = RunSync(folder)
    sync.open()
    client.set_tag(sync.run_id, REASON_TAG, "the driver of this run is gone")
    client.set_terminated(sync.run_id, "FAILED")
    sync.renew_lease()
    found = client.get_run(sync.run_id)
    assert found.info.status == "RUNNING"
    assert REASON_TAG not in found.data.tags
    sync.close_run("KILLED", "SIGTERM")
    sync.renew_lease()
    assert client.get_run(sync.run_id).info.status == "KILLED"


@MOSTLY_SQLITE
def test_a_later_attempt_stops_what_an_earlier_one_sends(client, run):
    folder = run(status="RUNNING")
    log_curve(folder, range(1, 4))
    folder.of_attempt(1)
    early = RunSync(folder)
    early.open()
    early.send_points()
    folder.save(Lease(host="elsewhere", pid=1, attempt=2), inside="attempts/0002")
    log_curve(folder.inner("").of_attempt(2), range(4, 6), attempt=2)
    for write in (
        early.send_points,
        early.renew_lease,
        early.close,
        lambda: early.close_run("FAILED"),
    ):
        with pytest.raises(LeaseLostError):
            write()
    found = client.get_run(early.run_id)
    assert found.info.status == "RUNNING"
    assert len(history(client, early.run_id)) == 3


@MOSTLY_SQLITE
@pytest.mark.parametrize("pieces", [1, 6, pytest.param(20, marks=pytest.mark.long)])
def test_an_outage_of_mlflow_keeps_no_more_in_memory_than_one_piece_of_the_journal(
    client, run, monkeypatch, pieces
):
    """However long it lasts: the points stay in the journal, and all arrive afterwards."""
    monkeypatch.setattr("shoal.tracking.journal.MOST_BYTES", 10_000)
    folder = run(status="RUNNING")
    journal, sync = Journal(folder, 1), RunSync(folder)
    sync.open()
    kept = []
    with monkeypatch.context() as away:
        away.setattr(
            type(client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("away"))
        )
        for piece in range(pieces):
            for step in range(500):
                journal.log(500 * piece + step, {"train/loss": 1.0})
            journal.flush()
            with pytest.raises(ConnectionError):
                sync.send_points()
            kept.append(len(sync._unsent))
    assert max(kept) < 300
    assert sync.send_points() == 500 * pieces
    history = client.get_metric_history(sync.run_id, "train/loss")
    assert [point.step for point in history] == list(range(500 * pieces))
