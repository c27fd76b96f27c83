"""The beats of a live process: its lease is renewed, and a status that another process wrote is corrected."""

import time

import pytest

from shoal.errors import LeaseLostError
from shoal.runs import heartbeat as module
from shoal.runs.heartbeat import Heartbeat
from shoal.storage.records import Identity, Lease
from shoal.storage.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.create_identity(name="run", experiment="shoal")
    folder.acquire_lease()
    return folder


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_lease_is_renewed_until_the_heartbeat_is_closed(folder, monkeypatch):
    monkeypatch.setattr(module, "RENEW_EVERY_S", {True: 0.01})
    heartbeat = Heartbeat(folder)
    heartbeat.start()
    wait_for(lambda: folder.lease().beat > 3)
    heartbeat.set_status("FINISHED")
    beat = folder.lease().beat
    wait_for(lambda: folder.lease().beat > beat)
    assert folder.holder() is not None
    heartbeat.close()
    assert folder.holder() is None


def test_a_run_that_was_closed_by_mistake_says_running_with_the_next_beat(folder, caplog):
    heartbeat = Heartbeat(folder)
    RunFolder(folder.uri).update(Identity, status="FAILED", reason="the driver died")
    heartbeat.beat()
    assert (folder.identity().status, folder.identity().reason) == ("RUNNING", None)
    assert "was marked FAILED by another process; it is RUNNING" in caplog.text
    heartbeat.set_status("KILLED", "SIGTERM")
    RunFolder(folder.uri).update(Identity, status="FAILED", reason="the driver died")
    heartbeat.beat()
    assert (folder.identity().status, folder.identity().reason) == ("KILLED", "SIGTERM")


def test_a_later_attempt_is_left_alone(folder):
    heartbeat = Heartbeat(folder)
    RunFolder(folder.uri).save(Lease(host="elsewhere", pid=1, attempt=2), inside="attempts/0002")
    RunFolder(folder.uri).update(Identity, status="FAILED")
    with pytest.raises(LeaseLostError):
        heartbeat.beat()
    with pytest.raises(LeaseLostError):
        heartbeat.set_status("FINISHED")
    assert folder.identity().status == "FAILED"
