"""How an attempt ends: each step of the end is taken, whatever became of the one before."""

import errno

import pytest

from shoal.errors import StorageError
from shoal.runs.config import RunConfig
from shoal.runs.lifecycle import RunLifecycle
from shoal.storage.records import Identity, Result
from shoal.storage.run_folder import RunFolder

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
