import pytest

from shoal.cluster import worker_group
from shoal.cluster.session import RayWatch
from shoal.cluster.worker_group import StopPatience
from shoal.errors import Interrupted
from shoal.runs.callbacks import StopFile
from shoal.storage.records import Outcome
from shoal.storage.run_folder import SAVING, RunFolder
from shoal.tracking.journal import Journal


@pytest.fixture
def folder(place):
    """A run that has begun, as the driver sees it."""
    folder = RunFolder(place).of_attempt(1)
    journal = Journal(folder, 1)
    journal.log(1, {"train/loss": 1.0})
    journal.sync()
    yield folder
    folder.forget_stop()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(worker_group, "STOP_PATIENCE_S", 0.0)


def test_workers_that_do_not_react_to_a_stop_are_not_waited_for(folder, impatient):
    patience = StopPatience(folder, 1)
    patience.check()
    folder.request_stop("SIGINT")
    patience.check()
    with pytest.raises(Interrupted, match="did not stop"):
        patience.check()


def test_a_checkpoint_that_follows_a_stop_is_waited_for_however_long_it_takes(folder, impatient):
    patience, stop_file = StopPatience(folder, 1), StopFile(folder)
    folder.request_stop("SIGINT")
    patience.check()
    stop_file._look()  # what a worker does a few times a second
    assert stop_file()
    for _ in range(3):
        patience.check()


def test_a_stop_before_the_first_step_ends_the_run_at_once(folder):
    folder.request_stop("SIGINT")
    with pytest.raises(Interrupted, match="before the first step"):
        StopPatience(folder, 2).check()


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(RayWatch, "gone_for_s", lambda self: 20.0)


def test_workers_that_ended_after_rays_server_did_are_taken_for_ended(folder, without_ray):
    patience = StopPatience(folder, 1)
    assert not patience.has_ended_without_ray()
    folder.request_stop("SIGTERM")
    patience.check()
    folder.write(SAVING, b"")
    assert not patience.has_ended_without_ray()
    folder.write(Outcome.file, b"{}")
    assert patience.has_ended_without_ray()


def test_workers_that_ended_with_ray_are_not_waited_for(folder, without_ray):
    patience = StopPatience(folder, 1)
    folder.request_stop("SIGTERM")
    patience.check()
    with pytest.raises(Interrupted, match="Ray ended too"):
        patience.has_ended_without_ray()
