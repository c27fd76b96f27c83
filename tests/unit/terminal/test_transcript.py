"""What a job printed is in its run folder, with the error that ended it."""

import sys

import pytest

from shoal.errors import ConfigError, StorageError
from shoal.storage.run_folder import RunFolder
from shoal.terminal.transcript import MOST, kept_output


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.create()
    return folder


def test_it_is_what_was_printed_to_both_streams_in_order(folder, capsys):
    with kept_output(folder):
        print("first")
        folder.acquire_lease()
        print("warning: second", file=sys.stderr)
    out, err = capsys.readouterr()
    assert (out, err) == ("first\n", "warning: second\n")
    _, *lines = folder.read("output/0001.txt").decode().splitlines()
    assert lines == ["first", "warning: second"]


def test_the_error_is_its_last_line_and_goes_on(folder):
    folder.acquire_lease()
    with pytest.raises(ConfigError), kept_output(folder):
        raise ConfigError("optim.lr=0: must be above 0")
    assert folder.read("output/0001.txt").decode().endswith("\nerror: optim.lr=0: must be above 0\n")


def test_an_attempt_has_its_own(folder):
    for text in ("one", "two"):
        attempt = RunFolder(folder.uri)
        with kept_output(attempt):
            attempt.acquire_lease()
            print(text)
            attempt.release_lease()
    assert [folder.read(f"output/000{n}.txt").decode().split()[-1] for n in (1, 2)] == ["one", "two"]


def test_nothing_is_written_without_an_attempt_or_where_the_storage_fails(folder):
    with kept_output(folder):
        print("refused")
    folder.acquire_lease()
    with pytest.raises(StorageError), kept_output(folder):
        raise StorageError("the disk is full")
    assert folder.names("output") == []


def test_the_end_is_kept_of_what_is_long(folder):
    folder.acquire_lease()
    with kept_output(folder):
        print("x" * MOST)
        print("end")
    text = folder.read("output/0001.txt").decode()
    assert len(text) == MOST
    assert text.endswith("xend\n") or text.endswith("x\nend\n")
