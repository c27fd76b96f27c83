import os
import signal
import subprocess
import sys
import time

import pytest

from shoal.errors import StorageError
from shoal.storage.lease import LEASE_S, is_alive
from shoal.storage.records import Identity, Lease, Outcome, Tracked
from shoal.storage.run_folder import RunFolder

HOLDER = """
import sys
from shoal.storage.run_folder import RunFolder
RunFolder(sys.argv[1]).acquire_lease()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(place):
    return RunFolder(place)


@pytest.fixture
def other(tmp_path):
    """A run folder whose lease another live process holds."""
    folder = RunFolder(str(tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "taken\n"
    yield folder, process
    process.kill()
    process.communicate()


def test_records_are_absent_made_and_updated(folder):
    assert folder.load(Tracked) is None
    folder.update(Tracked, run_id="a", model_version=1)
    folder.update(Tracked, run_id="b")
    assert folder.load(Tracked) == Tracked(run_id="b", model_version=1)


def test_an_update_with_a_wrong_value_or_an_unknown_field_is_refused_and_writes_nothing(folder):
    folder.create_identity(name="run", experiment="shoal")
    before = folder.read(Identity.file)
    with pytest.raises(ValueError, match="DONE"):
        folder.update(Identity, status="DONE")
    with pytest.raises(TypeError, match="staus"):
        folder.update(Identity, staus="FINISHED")
    assert folder.read(Identity.file) == before


def test_what_tracking_knows_is_dropped_with_a_warning_when_it_is_damaged(folder, caplog):
    folder.write(Tracked.file, b'{"run_id": "0')
    assert folder.tracked() == Tracked()
    assert "tracked.json' is damaged" in caplog.text
    assert not folder.exists(Tracked.file)
    folder.write(Tracked.file, b"")
    folder.update_tracked(run_id="b")
    assert folder.tracked().run_id == "b"


def test_a_record_that_cannot_be_found_out_again_is_never_dropped(folder):
    folder.write(Outcome.file, b"")
    with pytest.raises(StorageError, match=r"outcome\.json' is damaged"):
        folder.load(Outcome)
    assert folder.exists(Outcome.file)


def test_an_identity_is_created_once(folder):
    folder.create_identity(name="first", experiment="shoal")
    first = folder.identity()
    folder.create_identity(name="second", experiment="other")
    assert folder.identity() == first
    assert first.name == "first"
    assert first.status == "RUNNING"
    assert abs(first.start_ms - time.time() * 1000) < 60_000


def test_two_runs_have_different_keys(tmp_path):
    folders = [RunFolder(str(tmp_path / name)) for name in "ab"]
    for each in folders:
        each.create_identity(name="same", experiment="shoal")
    assert folders[0].identity().key != folders[1].identity().key


def test_a_folder_without_identity_is_reported_with_the_host_that_looked(folder):
    with pytest.raises(StorageError, match="is not there, seen from host"):
        folder.identity()


def test_each_attempt_has_the_next_number(folder):
    assert folder.holder() is None
    assert [folder.acquire_lease() for _ in range(3)] == [1, 2, 3]


def test_a_folder_is_held_until_its_lease_is_released(folder):
    folder.acquire_lease()
    assert folder.holder().pid == os.getpid()
    folder.release_lease()
    assert folder.holder() is None
    assert folder.acquire_lease() == 2


def test_a_renewal_changes_the_time_of_the_lease_and_nothing_else(folder):
    folder.acquire_lease()
    before = folder.load(Lease)
    folder.update(Lease, beat_ms=0)
    folder.renew_lease()
    after = folder.load(Lease)
    assert after.beat_ms >= before.beat_ms
    assert after.replace(beat_ms=0) == before.replace(beat_ms=0)


def test_another_live_process_holds_its_folder_and_a_killed_one_no_more(other):
    folder, process = other
    assert folder.holder().pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    # Not waited for: a zombie is as dead as one that is gone.
    deadline = time.monotonic() + 10
    while folder.holder() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert folder.holder() is None
    assert folder.acquire_lease() == 2


def test_a_pid_that_was_given_to_another_process_does_not_hold_the_folder(other):
    folder, _ = other
    folder.update(Lease, started="1000000000.00")
    assert folder.holder() is None


@pytest.mark.parametrize(("age_s", "alive"), [(0, True), (LEASE_S - 5, True), (LEASE_S + 5, False)])
def test_a_process_of_another_host_is_judged_by_its_last_renewal(folder, age_s, alive):
    folder.acquire_lease()
    folder.update(Lease, host="elsewhere pid:[1]", pid=1, beat_ms=int((time.time() - age_s) * 1000))
    assert is_alive(folder.load(Lease)) is alive
    assert (folder.holder() is not None) is alive


def test_one_process_at_a_time_writes_to_mlflow_and_its_end_frees_the_right(tmp_path):
    folder = RunFolder(str(tmp_path))
    code = (
        "import sys; from shoal.storage.run_folder import RunFolder\n"
        f"with RunFolder({str(tmp_path)!r}).writing_to_mlflow():\n    print('has it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "has it\n"
    with folder.writing_to_mlflow(patience_s=0.2) as has_it:
        assert not has_it
    other.kill()
    other.communicate()
    with folder.writing_to_mlflow(patience_s=5) as has_it:
        assert has_it


def test_a_store_that_is_away_is_no_damage_and_loses_no_file(s3, object_store, monkeypatch):
    """A damaged file that can be found out again is deleted; one that cannot be read now is kept."""
    monkeypatch.setattr("shoal.storage.failures.OUTAGE_S", 0.0)
    folder = RunFolder(f"{s3}/kept")
    folder.update_tracked(run_id="7")
    object_store.is_away = True
    try:
        with pytest.raises(StorageError, match="does not answer"):
            folder.tracked()
    finally:
        object_store.is_away = False
    assert folder.tracked().run_id == "7"
