"""A file that one of several processes creates."""

import threading

import pytest

from shoal.storage import exclusive
from shoal.storage.exclusive import create_file
from shoal.storage.folder import Folder


@pytest.fixture
def folder(place):
    return Folder(place)


def test_a_file_is_created_once_and_never_written_over(folder):
    assert create_file(folder, "a/b.json", b"first")
    assert not create_file(folder, "a/b.json", b"second")
    assert folder.read("a/b.json") == b"first"
    assert folder.names("a") == ["b.json"]


def test_of_many_at_once_one_creates_the_file(folder):
    for number in range(10):
        barrier, won = threading.Barrier(4), []

        def create(who, name=f"{number}/file", barrier=barrier, won=won):
            barrier.wait()
            if create_file(Folder(folder.uri), name, who):
                won.append(who)

        threads = [threading.Thread(target=create, args=(b"%d" % who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [folder.read(f"{number}/file")]
        assert folder.names(str(number)) == ["file"]


def test_a_disk_without_hard_links_will_do(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("Operation not permitted")  # as exFAT and some network folders say

    monkeypatch.setattr(exclusive.os, "link", link)
    folder = Folder(str(tmp_path))
    assert create_file(folder, "a/b.json", b"first")
    assert not create_file(folder, "a/b.json", b"second")
    assert folder.read("a/b.json") == b"first"
    assert folder.names("a") == ["b.json"]


def test_a_claim_that_a_process_left_when_it_died_is_removed_after_a_while(s3, monkeypatch):
    monkeypatch.setattr(exclusive, "CLAIM_S", 0.2)
    monkeypatch.setattr(exclusive, "PAUSE_S", 0.1)
    folder = Folder(f"{s3}/left")
    folder.write("a/.b.json.claim-0123", b"claim")
    assert create_file(folder, "a/b.json", b"first")
    assert folder.names("a") == ["b.json"]


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    def sync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exclusive.os, "fsync", sync)
    with pytest.raises(OSError, match="No space left"):
        create_file(Folder(str(tmp_path)), "a/b.json", b"first")
    assert Folder(str(tmp_path)).names("a") == []
