import socket
import time

import psutil
import pytest

from faulty_proxy import FaultyProxy, blackholed
from shoal.errors import StorageError
from shoal.storage.records import Identity, Lease
from shoal.storage.run_folder import RunFolder
from shoal.tracking import background as module
from shoal.tracking.background import Tracker, TrackerProcess
from shoal.tracking.journal import Journal
from shoal.tracking.sync import LEASE_TAG, Ending, RunSync


def note(folder, steps):
    journal = Journal(folder, 1)
    for step in steps:
        journal.log(step, {"train/loss": 1 / step})
    journal.sync()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(folder, status="FINISHED", **more):
    folder.update(Identity, status=status, **more)


def test_points_arrive_while_the_run_lasts_and_the_rest_at_its_end(client, run):
    folder = run(status="RUNNING")
    folder.acquire_lease()
    note(folder, range(1, 4))
    tracker = Tracker(folder)
    tracker.start()
    wait_for(
        lambda: tracker.run_id and client.get_run(tracker.run_id).data.metrics.get("train/loss") == 1 / 3
    )
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    note(folder, range(4, 9))
    ended(folder)
    assert tracker.close()
    assert [point.step for point in client.get_metric_history(tracker.run_id, "train/loss")] == list(
        range(1, 9)
    )
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_resumed_run_is_running_although_its_earlier_process_is_gone(client, run, gone_process):
    folder = run(status="RUNNING")
    earlier = RunSync(folder)
    earlier.open()
    client.set_tag(earlier.run_id, LEASE_TAG, gone_process.model_dump_json())
    folder.acquire_lease()
    tracker = Tracker(folder)
    tracker.start()
    wait_for(
        lambda: Lease.parse(client.get_run(earlier.run_id).data.tags[LEASE_TAG].encode()) == folder.holder()
    )
    status = client.get_run(earlier.run_id).info.status
    ended(folder)
    tracker.close()
    assert status == "RUNNING"


def test_a_run_can_be_marked_at_once_when_seconds_are_left(client, run):
    folder = run(status="RUNNING")
    tracker = Tracker(folder)
    tracker.start()
    wait_for(lambda: tracker.run_id)
    tracker.mark("KILLED", "SIGTERM")
    killed = client.get_run(tracker.run_id)
    ended(folder, "KILLED", reason="SIGTERM")
    tracker.close()
    assert killed.info.status == "KILLED"
    assert client.get_run(tracker.run_id).info.status == "KILLED"


def test_the_lease_is_renewed_while_the_rest_is_sent_and_a_closed_run_opened_again(client, run, monkeypatch):
    monkeypatch.setattr(module, "LEASE_RENEWAL_S", 0.05)
    folder = run(status="RUNNING")
    folder.acquire_lease()
    note(folder, range(1, 4))
    tracker = Tracker(folder)
    tracker.start()
    wait_for(lambda: tracker.run_id and client.get_run(tracker.run_id).data.metrics)
    log_batch, seen = type(client).log_batch, []

    def slow(self, run_id, *arguments, **more):
        client.set_terminated(run_id, "FAILED")
        folder.renew_lease()
        beat = folder.lease().beat
        wait_for(lambda: Lease.parse(client.get_run(run_id).data.tags[LEASE_TAG].encode()).beat == beat)
        wait_for(lambda: client.get_run(run_id).info.status == "RUNNING")
        seen.append(beat)
        return log_batch(self, run_id, *arguments, **more)

    monkeypatch.setattr(type(client), "log_batch", slow)
    note(folder, range(4, 6))
    ended(folder)
    assert tracker.close()
    assert seen
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_later_attempt_ends_the_sync_of_an_earlier_one(client, run):
    folder = run(status="RUNNING")
    folder.acquire_lease()
    note(folder, range(1, 4))
    tracker = Tracker(folder)
    tracker.start()
    wait_for(lambda: tracker.run_id and client.get_run(tracker.run_id).data.metrics)
    folder.save(Lease(host="elsewhere", pid=1, attempt=2), inside="attempts/0002")
    assert tracker.close() is False
    assert "taken over by attempt 2 of process 1 on elsewhere" in tracker.problem
    assert client.get_run(tracker.run_id).info.status == "RUNNING"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_NEVER_SEEN_S", 0.2)
    monkeypatch.setattr(module, "CLOSE_LOST_S", 0.2)
    monkeypatch.setattr(module, "RETRY_S", (0.05,))


def test_a_store_that_never_answers_neither_stops_nor_fails_the_run(run, impatient, tmp_path):
    (tmp_path / "file").write_text("no folder for a database")
    folder = run(status="RUNNING")
    folder.update(Identity, tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    note(folder, range(1, 4))
    tracker = Tracker(folder)
    tracker.mark("KILLED", "not even that")
    tracker.start()
    wait_for(lambda: tracker.problem)
    assert tracker.close() is False
    assert tracker.problem


def test_what_is_wrong_is_said_in_a_few_words(run, impatient):
    folder = run(status="RUNNING")
    folder.update(Identity, tracking_uri="http://127.0.0.1:9")  # mlflow's own words are 300 characters
    tracker = Tracker(folder)
    tracker.start()
    wait_for(lambda: tracker.problem)
    tracker.close()
    assert tracker.problem.startswith("ConnectionRefusedError: ")
    assert tracker.problem.endswith("Connection refused")


def test_what_a_store_missed_while_it_was_away_it_gets_when_it_is_back(client, run, impatient, monkeypatch):
    folder = run(status="RUNNING")
    note(folder, range(1, 4))
    tracker = Tracker(folder)
    with monkeypatch.context() as away:
        away.setattr(
            type(client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("away"))
        )
        tracker.start()
        wait_for(lambda: tracker.problem)
        assert "away" in tracker.problem
    ended(folder)
    assert tracker.close()
    assert len(client.get_metric_history(tracker.run_id, "train/loss")) == 3


def test_a_server_that_dies_before_the_run_is_in_it_is_waited_for_as_one_that_was_lost(
    client, run, monkeypatch
):
    monkeypatch.setattr(module, "CLOSE_NEVER_SEEN_S", 0.0)
    monkeypatch.setattr(module, "CLOSE_LOST_S", 1.0)
    monkeypatch.setattr(module, "RETRY_S", (0.05,))
    with socket.create_server(("127.0.0.1", 0)) as server:
        folder = run(status="RUNNING")
        folder.update(Identity, tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = Tracker(folder)
        tracker.start()
        server.accept()[0].close()
    began = time.monotonic()
    assert tracker.close() is False
    assert time.monotonic() - began > 1.0


@pytest.mark.parametrize("mlflow_store", ["http"], indirect=True)
def test_a_server_that_stops_answering_holds_up_the_end_of_a_run_once(run, mlflow_store):
    with FaultyProxy(mlflow_store) as proxy:
        folder = run(status="RUNNING")
        folder.update(Identity, tracking_uri=proxy.uri, artifact_location=None)
        tracker = Tracker(folder)
        tracker.start()
        wait_for(lambda: tracker.run_id and not tracker.problem)
        proxy.fault = blackholed
        note(folder, range(1, 4))
        ended(folder)
        since = time.monotonic()
        assert tracker.close() is False
        assert time.monotonic() - since < 15


@pytest.mark.parametrize("mlflow_store", ["http"], indirect=True)
def test_a_run_that_was_asked_to_stop_waits_for_no_server(run, mlflow_store):
    with FaultyProxy(mlflow_store) as proxy:
        folder = run(status="RUNNING")
        folder.update(Identity, tracking_uri=proxy.uri, artifact_location=None)
        tracker = Tracker(folder)
        tracker.start()
        wait_for(lambda: tracker.run_id and not tracker.problem)
        proxy.fault = blackholed
        since = time.monotonic()
        tracker.mark("KILLED", "interrupted")
        assert tracker.close(Ending("KILLED", "interrupted", 0)) is False
        assert time.monotonic() - since < 10
        assert tracker.problem


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "http://127.0.0.1:1",
        "https://nowhere.invalid",
        "http://127.0.0.1:port",
        "databricks",
    ],
)
def test_what_nothing_answers_at_is_not_waited_for(uri):
    assert module.listens(uri) is False


def test_a_run_is_closed_even_if_its_folder_cannot_be_read_any_more(client, run, monkeypatch):
    folder = run(status="RUNNING")
    tracker = Tracker(folder)
    tracker.start()
    wait_for(lambda: tracker._sync.is_open)
    monkeypatch.setattr(RunFolder, "names", lambda *_: (_ for _ in ()).throw(StorageError("away")))
    assert not tracker.close(Ending("FAILED", "StorageError: away", 5000))
    assert "away" in tracker.problem
    closed = client.get_run(tracker.run_id)
    assert closed.info.status == "FAILED"
    assert closed.data.tags["shoal.reason"] == "StorageError: away"


def test_how_an_attempt_ended_need_not_be_in_its_folder(client, run):
    """Where the disk is full it still says RUNNING."""
    folder = run(status="RUNNING")
    folder.acquire_lease()
    tracker = Tracker(folder)
    tracker.start()
    assert tracker.close(Ending("FAILED", "no space", 5000))
    closed = client.get_run(tracker.run_id)
    assert (closed.info.status, closed.info.end_time) == ("FAILED", 5000)
    assert closed.data.tags["shoal.reason"] == "no space"


@pytest.mark.parametrize("mlflow_store", ["http"], indirect=True)
def test_a_look_for_other_runs_that_fails_leaves_a_record_complete(run, mlflow_store):
    def fails_search(endpoint):
        return (
            "error"
            if endpoint.endswith("experiments/search") and proxy.count()["POST /api/2.0/mlflow/runs/create"]
            else "pass"
        )

    with FaultyProxy(mlflow_store) as proxy:
        proxy.fault = fails_search
        folder = run(status="RUNNING")
        folder.update(Identity, tracking_uri=proxy.uri, artifact_location=None)
        tracker = Tracker(folder)
        tracker.start()
        wait_for(lambda: tracker.run_id)
        ended(folder)
        assert tracker.close(), tracker.problem
        assert proxy.count("error")


def test_a_tracking_process_that_hangs_holds_up_no_run_that_was_asked_to_stop(client, run, monkeypatch):
    """It may wait for an object store that is away."""
    monkeypatch.setattr(module, "CLOSE_KILLED_S", 6.0)
    folder = run(status="RUNNING")
    folder.acquire_lease()
    tracker = TrackerProcess(folder)
    tracker.start()
    wait_for(lambda: tracker.run_id)
    (process,) = [
        child for child in psutil.Process().children() if "shoal.tracking.background" in child.cmdline()
    ]
    process.suspend()
    began_s = time.monotonic()
    tracker.mark("KILLED", "SIGTERM")
    tracker.close(Ending("KILLED", "SIGTERM", 5000))
    assert time.monotonic() - began_s < 30
    assert not process.is_running()
    wait_for(lambda: client.get_run(tracker.run_id).info.status == "KILLED")
