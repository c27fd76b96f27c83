import errno
import os
import resource
import shutil
import subprocess
import sys

import pytest

from shoal.errors import StorageError
from shoal.storage import failures
from shoal.storage.failures import Outage, explained, storage_error


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("number", sorted(failures.REMEDIES), ids=errno.errorcode.get)
def test_what_a_disk_says_becomes_one_error_with_path_reason_and_remedy(number):
    with pytest.raises(StorageError) as caught, explained("/runs/a"):
        raise OSError(number, os.strerror(number), "/runs/a/.part")
    assert (
        str(caught.value)
        == f"'/runs/a' cannot be written ({os.strerror(number)}): {failures.REMEDIES[number]}"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("error", [FileNotFoundError(2, "x"), IsADirectoryError(21, "x"), ValueError("x")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, explained("/runs/a"):
        raise error
    assert caught.value is error


def test_a_full_disk_is_found_behind_what_a_library_made_of_it_and_a_refusal_is_not():
    """A permission that a user's own code lacked somewhere says nothing of the run folder."""
    full, refused = RuntimeError("writing failed"), RuntimeError("reading failed")
    full.__context__ = OSError(errno.ENOSPC, "full", "/runs/a/file")
    refused.__context__ = PermissionError(errno.EACCES, "no", "/home/file")
    found = storage_error(full)
    assert "'/runs/a/file' cannot be written (No space left on device)" in str(found)
    assert storage_error(refused) is None
    copied = shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])
    assert "'/runs/a' cannot be written (No space left on device)" in str(storage_error(copied, "/runs/a"))
    assert storage_error(None) is None


def test_a_limit_on_file_sizes_is_explained(tmp_path):
    code = (
        "import sys; from shoal.storage.folder import Folder\n"
        "try: Folder(sys.argv[1]).write('a', b'x' * 100_000)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(
        f"StorageError '{tmp_path}/a' cannot be written (File too large): raise the limit"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_outage_is_waited_for_and_its_end_is_the_end_of_it(monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.001)
    outage, answers = Outage(), iter([OSError("away")] * 5)

    def work():
        if error := next(answers, None):
            assert outage.is_on or error
            raise error
        return "answer"

    assert outage.retry(work, "s3://bucket") == "answer"
    assert not outage.is_on


def test_the_first_call_that_waited_too_long_ends_the_patience_of_all(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(failures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    outage = Outage()
    with pytest.raises(StorageError, match=r"does not answer for 60\d s"):
        outage.retry(raising(OSError("away")), "s3://bucket/run")
    calls = []

    def work():
        calls.append(1)
        raise OSError("away")

    with pytest.raises(StorageError):
        outage.retry(work, "s3://bucket/run")
    assert len(calls) == 1
    now[0] += failures.QUIET_S + 1  # a failure long after is another outage
    with pytest.raises(StorageError, match=r"does not answer for 60\d s"):
        outage.retry(work, "s3://bucket/run")
    assert len(calls) > 10


def test_a_process_that_was_asked_to_stop_waits_for_seconds_alone(monkeypatch):
    now, outage = [0.0], Outage()

    def sleep(seconds):
        now[0] += seconds
        outage.is_stopping = now[0] > 100  # in the middle of a pause

    monkeypatch.setattr(failures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(failures.time, "sleep", sleep)
    with pytest.raises(StorageError, match=r"does not answer for 10\d s"):
        outage.retry(raising(OSError("away")), "s3://bucket/run")
    outage = Outage()
    outage.is_stopping = True
    began = now[0]
    with pytest.raises(StorageError, match="does not answer"):
        outage.retry(raising(OSError("away")), "s3://bucket/run")
    assert failures.STOPPED_OUTAGE_S <= now[0] - began < failures.STOPPED_OUTAGE_S + 2
    calls = []
    with pytest.raises(StorageError, match="does not answer"):
        outage.retry(lambda: calls.append(1), "s3://bucket/run")
    assert not calls  # it was given up


def test_a_poll_that_fails_once_gives_up_no_store_that_a_stop_waits_for():
    outage = Outage()
    outage.is_stopping = True
    with pytest.raises(StorageError):
        outage.retry(raising(OSError("away")), "s3://bucket/run", 1)
    assert outage.retry(lambda: "answer", "s3://bucket/run") == "answer"


@pytest.mark.parametrize(("most", "text"), [(1, "away"), (None, "AWS Error ACCESS_DENIED during PutObject")])
def test_a_poll_and_what_is_refused_are_not_waited_for(monkeypatch, most, text):
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.001)
    with pytest.raises(StorageError, match=text):
        Outage().retry(raising(OSError(f"When uploading: {text}")), "s3://bucket/run", most)


def test_a_file_that_is_not_there_is_an_answer():
    outage = Outage()
    with pytest.raises(FileNotFoundError):
        outage.retry(raising(FileNotFoundError("no such key")), "s3://bucket")
    assert not outage.is_on


def test_an_outage_is_said_once_and_so_is_its_end(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(failures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    answers = iter([OSError("AWS Error NETWORK_CONNECTION")] * 20)

    def work():
        if error := next(answers, None):
            raise error

    with caplog.at_level("WARNING", "shoal"):
        Outage().retry(work, "s3://bucket/run")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("storage 's3://bucket/run' does not answer (AWS Error NETWORK_CONNECTION)")
    assert said[1].startswith("the object store answers again, after ")
