import os
import signal
import subprocess
import sys
import time

import pytest

from shoal.errors import StorageError
from shoal.storage.lease import LEASE_S, is_alive
from shoal.storage.run_folder import LEASE, RunFolder

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


def test_json_files_are_read_written_and_updated(folder):
    assert folder.read_json("a.json") is None
    folder.update_json("a.json", x=1, y=[1, None])
    folder.update_json("a.json", x=2)
    assert folder.read_json("a.json") == {"x": 2, "y": [1, None]}


def test_an_identity_is_minted_once(folder):
    folder.create_identity(name="first", experiment="shoal")
    first = folder.identity()
    folder.create_identity(name="second", experiment="other")
    assert folder.identity() == first
    assert first["name"] == "first"
    assert first["status"] == "RUNNING"
    assert abs(first["start_ms"] - time.time() * 1000) < 60_000


def test_two_runs_have_different_keys(tmp_path):
    folders = [RunFolder(str(tmp_path / name)) for name in "ab"]
    for each in folders:
        each.create_identity(name="same")
    assert folders[0].identity()["key"] != folders[1].identity()["key"]


def test_a_folder_without_identity_is_told_with_the_host_that_looked(folder):
    with pytest.raises(StorageError, match="is not there, seen from host"):
        folder.identity()


def test_each_attempt_has_the_next_number(folder):
    assert folder.holder() is None
    assert [folder.acquire_lease() for _ in range(3)] == [1, 2, 3]


def test_a_folder_is_held_until_its_lease_is_dropped(folder):
    folder.acquire_lease()
    assert folder.holder()["pid"] == os.getpid()
    folder.release_lease()
    assert folder.holder() is None
    assert folder.acquire_lease() == 2


def test_a_beat_renews_the_lease_and_changes_nothing_else(folder):
    folder.acquire_lease()
    before = folder.read_json(LEASE)
    folder.update_json(LEASE, beat_ms=0)
    folder.renew_lease()
    after = folder.read_json(LEASE)
    assert after["beat_ms"] >= before["beat_ms"]
    assert {**after, "beat_ms": 0} == {**before, "beat_ms": 0}


def test_another_live_process_holds_its_folder_and_a_killed_one_no_more(other):
    folder, process = other
    assert folder.holder()["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    # Not waited for: a zombie is as dead as one that is gone.
    deadline = time.monotonic() + 10
    while folder.holder() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert folder.holder() is None
    assert folder.acquire_lease() == 2


def test_a_pid_that_was_given_to_another_process_does_not_hold_the_folder(other):
    folder, _ = other
    folder.update_json(LEASE, started="1000000000.00")
    assert folder.holder() is None


@pytest.mark.parametrize(("age_s", "alive"), [(0, True), (LEASE_S - 5, True), (LEASE_S + 5, False)])
def test_a_process_of_another_host_is_judged_by_its_last_beat(folder, age_s, alive):
    folder.acquire_lease()
    folder.update_json(LEASE, host="elsewhere pid:[1]", pid=1, beat_ms=int((time.time() - age_s) * 1000))
    assert is_alive(folder.read_json(LEASE)) is alive
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
