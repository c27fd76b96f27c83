"""What killed processes leave on a disk; that nothing is lost at a power cut is in `tests/unit/training`."""

import os

import pytest

from shoal.storage import durable
from shoal.storage.folder import Folder
from shoal.storage.run_folder import CHECKPOINTS, PICTURES, RunFolder


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "place"))


def tree(root, **files):
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_text(content)
    return root


def killed_before_its_rename(monkeypatch, work):
    """Do what a process does that is killed with its scratch complete: nothing of it is cleaned up."""

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(durable.Path, "replace", die)
        patch.setattr(durable.Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            work()


def test_what_a_killed_write_left_is_no_content_and_is_cleared_away(folder, monkeypatch):
    folder.write("pictures/a", b"old")
    killed_before_its_rename(monkeypatch, lambda: folder.write("pictures/a", b"new"))
    assert len(os.listdir(folder.local("pictures"))) == 2
    assert folder.names("pictures") == ["a"]
    folder.clear_scratch("pictures")
    assert os.listdir(folder.local("pictures")) == ["a"]
    assert folder.read("pictures/a") == b"old"


def test_an_attempt_clears_every_folder_that_a_run_writes_in(tmp_path, monkeypatch):
    run = RunFolder(str(tmp_path))
    for name in ("run.json", f"{PICTURES}/loss.png", "journal/shipped.json", "report/report.html"):
        killed_before_its_rename(monkeypatch, lambda name=name: run.write(name, b"half"))
    tree(tmp_path / CHECKPOINTS / ".part-1", weights="half")
    run.clear_leftovers()
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_a_replacement_that_was_killed_in_between_puts_the_old_folder_back(folder, tmp_path, monkeypatch):
    with folder.scratch("model") as scratch:
        folder.put_folder(tree(scratch / "one", a="old"), "model", last=None)
    rename = durable.Path.rename

    def dies_at_the_new_one(path, target):
        if path.name == "two":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, folder.scratch("model") as scratch:
        tree(scratch / "two", a="new")
        patch.setattr(durable.Path, "rename", dies_at_the_new_one)
        with pytest.raises(KeyboardInterrupt):
            folder.put_folder(scratch / "two", "model", last=None)
    assert folder.names() == []
    folder.clear_scratch()
    assert folder.read("model/a") == b"old"
    assert os.listdir(folder.local()) == ["model"]


def test_a_replacement_that_was_killed_after_it_keeps_the_new_folder(folder):
    tree(folder.local("model"), a="new")
    tree(folder.local(f"{durable.REPLACED}model"), a="old")
    folder.clear_scratch()
    assert folder.read("model/a") == b"new"
    assert os.listdir(folder.local()) == ["model"]


def test_a_deletion_that_was_killed_left_nothing_under_the_name(folder, monkeypatch):
    folder.write("model/a", b"1")
    monkeypatch.setattr(durable.shutil, "rmtree", lambda *_, **__: None)
    folder.delete("model")
    assert folder.names() == []
    assert not folder.exists("model")
    monkeypatch.undo()
    folder.clear_scratch()
    assert os.listdir(folder.local()) == []


def test_a_write_begins_anew_when_its_scratch_is_cleared_away_meanwhile(folder, monkeypatch):
    """A process of an earlier attempt may still be writing when the next one begins."""
    folder.write("a", b"old")
    replace, times = durable.Path.replace, []

    def cleared(path, target):
        times.append(path)
        if len(times) == 1:
            folder.clear_scratch()
        return replace(path, target)

    monkeypatch.setattr(durable.Path, "replace", cleared)
    folder.write("a", b"new")
    assert folder.read("a") == b"new"
    assert len(times) == 2


def test_scratch_is_on_the_file_system_of_what_it_becomes(folder):
    with folder.scratch("here/model") as scratch:
        assert scratch.parent == folder.local("here")
        assert folder.names("here") == []
    assert not scratch.exists()
