"""Runs whose process is gone are closed in their folders and in MLflow; one that lives never is."""

import threading
import time

import pytest

from shoal.command import reap as command
from shoal.errors import UserError
from shoal.registry.client import connect
from shoal.storage.lease import renewed
from shoal.storage.records import Identity, Lease, ReapResult
from shoal.storage.run_folder import RunFolder
from shoal.tracking import reaper as reaper_module
from shoal.tracking.journal import Journal
from shoal.tracking.sync import RunSync
from shoal.workflows import reap as workflow

ELSEWHERE = Lease(host="elsewhere pid:[1]", pid=1, started="1.00", attempt=1)
WATCH_S = 2.0

pytestmark = pytest.mark.parametrize("mlflow_store", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reaper_module, "LEASE_S", WATCH_S)
    monkeypatch.setattr(workflow, "LEASE_S", WATCH_S)


@pytest.fixture
def led(run):
    """Make a run that says RUNNING in its folder and in MLflow, with a lease and a point that MLflow does not have."""

    def make(name, lease):
        folder = run(f"runs/shoal/{name}", status="RUNNING")
        if lease is not None:
            folder.save(lease, inside="attempts/0001")
        sync = RunSync(folder)
        sync.open()
        journal = Journal(folder, 1)
        journal.log(3, {"train/loss": 0.5})
        journal.sync()
        return folder, sync.run_id

    return make


def reaped(tmp_path, capsys):
    assert command.main([str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    folder = RunFolder(out.splitlines()[-1].removeprefix("result: ").removesuffix("/result.json"))
    runs = folder.load(ReapResult).runs
    return {one.run.rpartition("/")[2]: one for one in runs}, out


def status(folder, run_id):
    return folder.identity().status, connect(folder.identity().tracking_uri).get_run(run_id).info.status


def test_a_run_of_a_process_that_is_gone_is_closed_with_its_last_points(led, gone_process, tmp_path, capsys):
    folder, run_id = led("dead", gone_process)
    since_s = time.monotonic()
    found, out = reaped(tmp_path, capsys)
    assert found["dead"].outcome == "closed"
    assert "is gone" in found["dead"].why
    assert "1 of 1 runs" in out
    assert status(folder, run_id) == ("FAILED", "FAILED")
    assert "the same command resumes" in str(folder.identity().reason)
    client = connect(folder.identity().tracking_uri)
    assert [(one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")] == [(3, 0.5)]
    assert time.monotonic() - since_s < WATCH_S or "waiting" not in out
    assert reaped(tmp_path, capsys)[0] == {}


def test_of_runs_elsewhere_the_silent_one_is_closed_and_the_one_that_beats_is_not(led, tmp_path, capsys):
    silent, silent_id = led("silent", ELSEWHERE)
    beating, beating_id = led("beating", ELSEWHERE.replace(pid=2))

    def beat():
        beating.save(renewed(beating.lease()), inside="attempts/0001")
        client.set_tag(beating_id, reaper_module.LEASE_TAG, beating.lease().model_dump_json())

    client = connect(beating.identity().tracking_uri)
    beats = threading.Timer(WATCH_S / 2, beat)
    beats.start()
    found, out = reaped(tmp_path, capsys)
    beats.join()
    assert "waiting" in out
    assert {name: one.outcome for name, one in found.items()} == {"silent": "closed", "beating": "lives"}
    assert status(silent, silent_id) == ("FAILED", "FAILED")
    assert status(beating, beating_id) == ("RUNNING", "RUNNING")


def test_a_run_of_this_very_process_lives(run, tmp_path, capsys):
    folder = run("runs/shoal/own", status="RUNNING")
    folder.acquire_lease()
    assert reaped(tmp_path, capsys)[0]["own"].outcome == "lives"
    assert folder.identity().status == "RUNNING"


def test_a_run_that_a_later_attempt_took_over_meanwhile_is_left_alone(
    led, gone_process, tmp_path, monkeypatch
):
    folder, _ = led("taken", gone_process)
    lease = folder.lease()
    RunFolder(folder.uri).acquire_lease()
    assert workflow._close(RunFolder(folder.uri), lease).outcome == "lives"
    assert folder.identity().status == "RUNNING"


def test_a_run_whose_server_does_not_answer_is_closed_in_its_folder(
    run, gone_process, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("shoal.tracking.watchdog.TRY_FOR_S", 0.0)
    folder = run("runs/shoal/away", status="RUNNING")
    folder.update(Identity, tracking_uri="http://127.0.0.1:9")
    folder.save(gone_process, inside="attempts/0001")
    assert command.main([str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "not in MLflow" in out
    assert "sync" in out
    assert folder.identity().status == "FAILED"


def test_a_store_of_mlflow_is_reaped_by_its_address(led, gone_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, run_id = led("dead", gone_process)
    uri = folder.identity().tracking_uri
    connect(uri).set_tag(run_id, reaper_module.LEASE_TAG, gone_process.model_dump_json())
    assert command.main([uri]) == 0
    assert connect(uri).get_run(run_id).info.status == "FAILED"


def test_a_damaged_run_is_named_and_the_others_are_closed(led, gone_process, tmp_path, capsys):
    led("dead", gone_process)
    (tmp_path / "runs" / "shoal" / "broken").mkdir()
    (tmp_path / "runs" / "shoal" / "broken" / "run.json").write_text("{")
    found, _ = reaped(tmp_path, capsys)
    assert {name: one.outcome for name, one in found.items()} == {"broken": "unknown", "dead": "closed"}


def test_a_folder_without_runs_is_refused(tmp_path, mlflow_store):
    with pytest.raises(UserError, match="holds no runs"):
        command.main([str(tmp_path / "nothing")])
