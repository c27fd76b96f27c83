"""While the steps of a lost loss are made again: once its step is passed, the host is named, and counted against."""

import pytest

from shoal.cluster.placement import Placement
from shoal.cluster.replay import SUSPECT_TAG, Replay
from shoal.runs.failure_policy import Fault, decide
from shoal.runs.hang import WorkerStatus
from shoal.storage.host_ledger import HostLedger
from shoal.storage.lease import now_ms
from shoal.storage.records import FailedWorker, FailureRecord, Metadata
from shoal.storage.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(str(tmp_path / "runs" / "shoal" / "run"))
    found.create()
    found.save(Metadata(tags={"mine": "kept"}))
    return found


def lost(host="w1"):
    worker = FailedWorker(rank=1, host=host, step=50, message="train/loss is nan at step 50: lower optim.lr")
    return decide([Fault(worker, "diverged")], None, 40, max_failures=3).record


def said(*steps):
    return [
        WorkerStatus(rank, f"w{rank}", "n", 1, "", "step", 60, 0.0, 0.0, finite_step=step)
        for rank, step in enumerate(steps)
    ]


def charged(tmp_path):
    return {host: len(found) for host, found in HostLedger(str(tmp_path / "runs")).recent(now_ms()).items()}


def test_a_step_that_is_passed_names_the_host_once(folder, tmp_path, caplog):
    replay = Replay(folder, lost(), Placement(folder.uri))
    assert replay.host == "w1"
    replay.check(said(0, 49))
    assert caplog.messages == []
    assert charged(tmp_path) == {}
    replay.check(said(50, 50))
    replay.check(said(51, 51))
    replay.end(60)
    [line] = caplog.messages
    assert line.startswith("bad host: worker 1 on w1: train/loss is nan at step 50, and finite when")
    assert replay.earlier == folder.load(FailureRecord)
    assert replay.host is None
    assert folder.load(Metadata).tags == {"mine": "kept", SUSPECT_TAG: "w1"}
    assert charged(tmp_path) == {"w1": 1}


def test_workers_that_end_well_have_passed_it(folder, tmp_path):
    replay = Replay(folder, lost(), Placement(folder.uri))
    replay.end(60)
    assert charged(tmp_path) == {"w1": 1}


def test_where_no_host_stands_out_none_is_charged(folder, tmp_path, caplog):
    replay = Replay(folder, lost(host=None), Placement(folder.uri))
    assert replay.host is None
    replay.check(said(50))
    assert len(caplog.messages) == 1
    assert charged(tmp_path) == {}
    assert folder.load(Metadata).tags == {"mine": "kept"}


def test_without_a_replay_nothing_happens(folder, caplog):
    for earlier in (None, decide([Fault(FailedWorker(step=50), "died")], None, 40, max_failures=3).record):
        replay = Replay(folder, earlier, Placement(folder.uri))
        replay.check(said(60))
        assert replay.earlier is earlier
    assert caplog.messages == []
