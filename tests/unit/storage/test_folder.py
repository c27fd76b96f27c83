import gzip
import threading

import pytest

from shoal.errors import StorageError
from shoal.storage import failures
from shoal.storage.folder import Folder


@pytest.fixture
def folder(place):
    return Folder(place)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(failures, "OUTAGE_S", 0.5)


def tree(root, **files):
    root.mkdir()
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return root


def test_what_was_written_is_read_and_written_over(folder):
    folder.write("a/b.txt", b"old")
    folder.write("a/b.txt", b"newer")
    assert folder.read("a/b.txt") == b"newer"
    assert folder.size("a/b.txt") == 5
    assert folder.exists("a/b.txt")
    assert folder.exists("a")


def test_bytes_are_kept_as_they_are_whatever_the_name_promises(folder):
    packed = gzip.compress(b"text")
    folder.write("a.gz", packed)
    assert folder.read("a.gz") == packed
    assert folder.size("a.gz") == len(packed)


def test_a_file_can_be_read_from_an_offset_on(folder):
    folder.write("a.txt", b"0123456789")
    assert folder.read_from("a.txt", 7) == b"789"
    assert folder.read_from("a.txt", 10) == b""


def test_an_absent_file_differs_from_an_empty_one(folder):
    folder.write("empty", b"")
    assert folder.read("empty") == b""
    assert not folder.exists("absent")
    with pytest.raises(FileNotFoundError):
        folder.read("absent")


def test_names_are_sorted_and_an_absent_folder_has_none(folder):
    for name in ("b", "a", "c/d"):
        folder.write(name, b"x")
    assert folder.names() == ["a", "b", "c"]
    assert folder.names("c") == ["d"]
    assert folder.names("nowhere") == []


def test_files_are_all_those_below_but_what_is_not_in_its_place(folder):
    for name in ("x/b", "x/c/d", "x/.part-1/e", "x/c/.part-2"):
        folder.write(name, b"1")
    assert folder.files("x") == ["b", "c/d"]
    assert folder.files("nowhere") == []


def test_deleting_takes_files_folders_and_nothing_at_all(folder):
    for name in ("a", "c/d", "c/e/f"):
        folder.write(name, b"x")
    for name in ("a", "c", "never there"):
        folder.delete(name)
    assert folder.names() == []


def test_a_folder_below_has_the_same_files_under_its_own_uri(folder):
    Folder(f"{folder.uri}/run").write("a", b"x")
    assert folder.read("run/a") == b"x"
    assert Folder(f"{folder.uri}/run").names() == ["a"]


def test_a_folder_is_moved_in_whole_and_comes_back(folder, tmp_path):
    with folder.scratch("here/model") as scratch:
        folder.put_folder(tree(scratch / "made", a="1", deep__b="2"), "here/model", last="a")
        assert not (scratch / "made").exists()
    assert not scratch.exists()
    assert folder.names("here") == ["model"]
    back = folder.get_folder("here/model", tmp_path / "back")
    assert (back / "a").read_text() == "1"
    assert (back / "deep" / "b").read_text() == "2"


def test_a_folder_moved_in_again_replaces_its_files(folder, tmp_path):
    folder.put_folder(tree(tmp_path / "one", a="1"), "model", last="a")
    folder.put_folder(tree(tmp_path / "two", a="2"), "model", last="a")
    assert folder.read("model/a") == b"2"


def test_an_upload_that_dies_in_the_middle_leaves_no_last_file(s3, tmp_path, monkeypatch, impatient):
    folder, put = Folder(f"{s3}/dying"), Folder._put

    def dies_at_c(self, name, data):
        if name.endswith("/c"):
            raise OSError("the host is gone")
        put(self, name, data)

    monkeypatch.setattr(Folder, "_put", dies_at_c)
    with pytest.raises(OSError, match="the host is gone"):
        folder.put_folder(tree(tmp_path / "made", a="manifest", b="2", c="3"), "model", last="a")
    assert folder.exists("model/b")
    assert not folder.exists("model/a")


def test_a_replacement_that_dies_in_the_middle_leaves_no_last_file_in_an_object_store(
    s3, tmp_path, monkeypatch, impatient
):
    """The last file of the folder before would say that old and new files together are complete."""
    folder, put = Folder(f"{s3}/replacing"), Folder._put
    folder.put_folder(tree(tmp_path / "one", a="manifest", b="1", c="1"), "model", last="a")

    def dies_at_c(self, name, data):
        if name.endswith("/c"):
            raise OSError("the host is gone")
        put(self, name, data)

    monkeypatch.setattr(Folder, "_put", dies_at_c)
    with pytest.raises(OSError, match="the host is gone"):
        folder.put_folder(tree(tmp_path / "two", a="manifest", b="2", c="2"), "model", last="a")
    assert (folder.read("model/b"), folder.read("model/c")) == (b"2", b"1")
    assert not folder.exists("model/a")


def test_a_copied_folder_has_its_last_file_once_it_is_complete(s3, tmp_path, monkeypatch, impatient):
    folder, other, put = Folder(f"{s3}/copy"), Folder(f"{s3}/original"), Folder._put
    other.put_folder(tree(tmp_path / "made", a="manifest", b="1"), "checkpoint", last="a")

    def dies_at_b(self, name, data):
        if name.endswith("/b"):
            raise OSError("the host is gone")
        put(self, name, data)

    monkeypatch.setattr(Folder, "_put", dies_at_b)
    with pytest.raises(OSError, match="the host is gone"):
        folder.copy_folder(other, "checkpoint", last="a")
    assert not folder.exists("checkpoint/a")
    monkeypatch.undo()
    folder.copy_folder(other, "checkpoint", last="a")
    assert folder.names("checkpoint") == ["a", "b"]


def test_a_store_that_fails_for_a_moment_is_tried_again(s3, monkeypatch, impatient):
    folder, put, failures = Folder(f"{s3}/flaky"), Folder._put, iter([True, True])

    def flaky(self, name, data):
        if next(failures, False):
            raise OSError("503 slow down")
        put(self, name, data)

    monkeypatch.setattr(Folder, "_put", flaky)
    folder.write("a", b"x")
    assert folder.read("a") == b"x"


def test_appended_bytes_follow_each_other(folder):
    out = folder.appender("log/a.jsonl")
    for part in (b"1\n", b"2\n"):
        out.write(part)
        out.sync()
    assert appended(folder) == b"1\n2\n"


def test_an_appender_opened_again_goes_on_after_what_is_there(folder):
    """A worker that Ray restarts opens the journal of its attempt again."""
    for part in (b"1\n", b"2\n"):
        out = folder.appender("log/a.jsonl")
        out.write(part)
        out.sync()
    assert appended(folder) == b"1\n2\n"


def appended(folder):
    return b"".join(folder.read(f"log/{name}") for name in folder.names("log"))


def test_a_folder_can_be_created_and_leaves_no_trace_of_its_probe(folder):
    folder.create()
    folder.create()
    assert folder.names() == []


def test_a_folder_that_cannot_be_written_is_refused_with_path_and_reason(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written") as caught:
        Folder(str(tmp_path / "file" / "below")).create()
    assert str(tmp_path / "file" / "below") in str(caught.value)


def test_a_bucket_that_is_not_there_is_refused(s3, impatient):
    with pytest.raises(StorageError, match="s3://no-such-bucket"):
        Folder("s3://no-such-bucket/runs").create()


def test_an_address_nobody_knows_is_refused_with_what_would_do():
    with pytest.raises(StorageError, match=r"'nfs://host/runs' cannot be opened .* s3://bucket/prefix"):
        Folder("nfs://host/runs")


def test_paths_and_file_uris_are_the_same_folder_on_this_disk(tmp_path):
    Folder(f"file://{tmp_path}").write("a", b"x")
    assert Folder(str(tmp_path)).local("a") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == b"x"


def test_an_object_store_has_no_local_path(s3):
    assert Folder(s3).local("a") is None


def test_options_in_an_s3_uri_are_refused_with_what_to_set_instead():
    """Paths are joined to the URI everywhere, which a query at its end would break."""
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        Folder("s3://bucket/runs?scheme=http&endpoint_override=localhost%3A9000&region=us-east-1")


def test_a_reader_never_sees_a_part_of_what_is_being_written(tmp_path):
    folder, size = Folder(str(tmp_path)), 1 << 20
    folder.write("a", b"0" * size)
    over = threading.Event()

    def write():
        for number in range(100):
            folder.write("a", str(number % 10).encode() * size)
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not over.is_set():
        data = folder.read("a")
        assert len(data) == size
        assert data == data[:1] * size
    thread.join()
    assert folder.names() == ["a"]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a/b", b"old")
    with pytest.raises(IsADirectoryError):
        folder.write("a", b"a file in place of a folder")
    assert folder.names() == ["a"]
    assert folder.read("a/b") == b"old"
