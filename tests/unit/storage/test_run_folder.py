import subprocess
import sys
import time

import pytest

from shoal.errors import StorageError
from shoal.storage.records import Identity, Outcome, Tracked
from shoal.storage.run_folder import RunFolder


@pytest.fixture
def folder(place):
    return RunFolder(place)


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
