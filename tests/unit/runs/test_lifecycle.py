"""One attempt at a run: it holds the folder to its end, of which each step is taken, whatever became of the others."""

import errno
import time

import pytest

from shoal.errors import Interrupted, LeaseLostError, StorageError, TrainingError
from shoal.runs import heartbeat
from shoal.runs.config import RunConfig
from shoal.runs.lifecycle import RunLifecycle
from shoal.storage.records import Identity, Lease, Result
from shoal.storage.run_folder import STOP, RunFolder

FULL = "'/runs/run' cannot be written (No space left on device): free some space there"


class Attempt(RunLifecycle):
    def write_result(self, status, reason=None):
        result = Result(status=status, reason=reason, run_name="run", run_folder=self.folder.uri)
        self.folder.save(result)
        return result


@pytest.fixture
def attempt(tmp_path, mlflow_store):
    config = RunConfig(experiment_name=f"ends {tmp_path.name}", track={"tracking_uri": mlflow_store})
    return Attempt(config, RunFolder(str(tmp_path / "run")))


@pytest.fixture
def full_disk(monkeypatch):
    """Let every record fail from now on: `full_disk()`."""

    def fill():
        def fail(*_, **__):
            raise StorageError(FULL)

        monkeypatch.setattr(RunFolder, "write", fail)

    return fill


def make(attempt, work, error=None):
    """Make an attempt that does some work, and ends with an error or without one."""
    with attempt:
        attempt.tracker.start()
        work()
        if error:
            raise error


def the_run(attempt, client):
    return client.get_run(attempt.tracker.run_id)


def test_a_disk_that_is_full_at_the_end_keeps_neither_mlflow_nor_the_watchdog_waiting(
    attempt, client, full_disk
):
    with pytest.raises(StorageError, match="No space left on device"):
        make(attempt, full_disk, StorageError(FULL))
    run = the_run(attempt, client)
    assert run.info.status == "FAILED"
    assert FULL in run.data.tags["shoal.reason"]
    assert attempt.watchdog._process.poll() == 0


def test_a_run_whose_last_record_cannot_be_written_has_failed_with_that_reason(attempt, client, full_disk):
    with pytest.raises(StorageError, match="No space left on device"):
        make(attempt, full_disk)
    run = the_run(attempt, client)
    assert run.info.status == "FAILED"
    assert FULL in run.data.tags["shoal.reason"]
    assert attempt.watchdog._process.poll() == 0


def test_an_error_of_the_system_about_a_full_disk_becomes_the_one_that_is_reported(attempt, client):
    error = OSError(errno.ENOSPC, "No space left on device", "/tmp/scratch")
    with pytest.raises(StorageError, match="free some space"):
        make(attempt, lambda: None, error)
    assert attempt.folder.load(Identity).status == "FAILED"
    assert "free some space" in the_run(attempt, client).data.tags["shoal.reason"]


@pytest.fixture
def again(attempt):
    """Make another attempt at the run of the same folder."""
    return lambda: Attempt(attempt.config, RunFolder(attempt.folder.uri))


def take_over(folder):
    """Let a later attempt of another process have begun."""
    RunFolder(folder.uri).save(Lease(host="elsewhere", pid=1, attempt=2), inside="attempts/0002")


def test_a_second_attempt_at_once_is_refused_and_changes_nothing(again):
    with again() as first:
        before = first.folder.identity()
        with pytest.raises(StorageError, match="is being worked on by process"), again():
            pass
        assert first.folder.identity() == before
    assert first.folder.identity().status == "FINISHED"
    with again() as second:
        assert second.attempt == 2


def test_the_lease_is_renewed_until_everything_is_delivered(again, monkeypatch):
    monkeypatch.setattr(heartbeat, "RENEW_EVERY_S", {True: 0.01})
    beats = []
    with again() as run:
        close = run.tracker.close

        def slow(*ending):
            assert run.folder.identity().status == "FINISHED"
            beat = run.folder.lease().beat
            while len(beats) < 3:
                if run.folder.holder().beat > beat:
                    beat = run.folder.holder().beat
                    beats.append(beat)
            return close(*ending)

        run.tracker.close = slow
    assert len(beats) == 3
    assert run.folder.holder() is None


@pytest.mark.parametrize("error", [None, TrainingError("the worker's write was refused")])
def test_an_attempt_that_was_taken_over_says_so_and_leaves_the_run_as_it_is(again, client, error):
    run = again()

    def lose_it():
        with run:
            run.tracker.start()
            while run.tracker.run_id is None:
                time.sleep(0.01)
            take_over(run.folder)
            if error:
                raise error

    with pytest.raises(LeaseLostError, match="taken over by attempt 2 of process 1 on elsewhere"):
        lose_it()
    assert run.folder.identity().status == "RUNNING"
    assert run.folder.load(Result) is None
    assert run.folder.lease().attempt == 2
    assert client.get_run(run.tracker.run_id).info.status == "RUNNING"


def test_a_request_to_stop_goes_to_the_own_attempt_alone(again):
    with again() as run:
        stranger = RunFolder(run.folder.uri)
        with pytest.raises(Interrupted, match="by SIGINT before the run began"):
            stranger.interrupt("SIGINT")
        assert not run.folder.exists(STOP)
        run.folder.interrupt("SIGINT")
        assert run.folder.read(STOP) == b"SIGINT"
        run.folder.forget_stop()
        take_over(run.folder)
        with pytest.raises(LeaseLostError):
            run.folder.interrupt("SIGINT")
        (run.folder.local("attempts/0002") / Lease.file).unlink()
    assert run.folder.load(Identity).status == "FINISHED"


def test_a_signal_ends_at_once_what_the_same_command_does_again(again):
    begun = []

    def work():
        with again() as run, run.stops_at_once():
            begun.append(run)
            run.folder.interrupt("SIGTERM")
            time.sleep(60)

    began_s = time.monotonic()
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        work()
    assert time.monotonic() - began_s < 30
    (run,) = begun
    assert run.folder.identity().status == "KILLED"
    with pytest.raises(Interrupted), run.folder.stops_at_once():  # the signal came a moment before
        pytest.fail("it was begun")
