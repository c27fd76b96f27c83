"""The first use of an SQLite store: by several processes at once, by processes that are killed, on a full disk."""

import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from shoal.errors import StorageError
from shoal.registry import sqlite_store
from shoal.registry.client import connect
from shoal.registry.sqlite_store import check_store, create_store, store_file

pytestmark = pytest.mark.long

CONNECT = "import sys; from shoal.registry.client import connect; connect(sys.argv[1]); print('connected')"


def first_use(uri, **options):
    return subprocess.Popen(
        [sys.executable, "-c", CONNECT, uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def assert_usable(uri):
    check_store(uri)
    client = connect(uri)
    run = client.create_run(client.create_experiment("an experiment"))
    client.log_param(run.info.run_id, "a", 1)
    assert client.get_run(run.info.run_id).data.params == {"a": "1"}


def test_three_first_uses_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    processes = [first_use(uri) for _ in range(3)]
    for process in processes:
        out, err = process.communicate()
        assert out == "connected\n", err
    assert_usable(uri)


def test_processes_that_are_killed_while_they_make_a_store_leave_none_or_a_whole_one(tmp_path):
    uri, file = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db"
    part = tmp_path / ".mlflow.db.part"
    draw, killed = random.Random(0), 0
    while not file.exists() and killed < 8:
        process = first_use(uri)
        while not part.exists() and process.poll() is None and not file.exists():
            time.sleep(0.005)
        time.sleep(draw.random() * 0.8)  # the tables take a second or more
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        assert not file.exists() or file.stat().st_size > 0
    assert killed >= 1
    assert_usable(uri)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith("part")) == []


def test_a_disk_that_was_full_and_has_room_again(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # noqa: E731
    process = first_use(uri, preexec_fn=limit)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "OperationalError" in err
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]
    assert_usable(uri)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file that holds a whole store; it takes two seconds to make."""
    file = tmp_path_factory.mktemp("whole") / "mlflow.db"
    create_store(f"sqlite:///{file}")
    return file


def half_made(file, whole):
    """A store as MLflow leaves it where its process dies between two of the steps."""
    shutil.copy(whole, file)
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE logged_models")
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        database.execute("DELETE FROM experiments")


def test_a_store_that_is_half_made_is_refused_with_the_remedy(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(sqlite_store, "MAKING_S", 0.0)
    half_made(tmp_path / "mlflow.db", whole)
    with pytest.raises(StorageError, match=r"mlflow\.db'?: .*half made.*delete the file"):
        check_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_that_another_program_makes_right_now_is_waited_for(tmp_path, monkeypatch, whole):
    half_made(tmp_path / "mlflow.db", whole)
    monkeypatch.setattr(time, "sleep", lambda _: shutil.copy(whole, tmp_path / "mlflow.db"))
    check_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_of_another_version_of_mlflow_is_not_to_be_deleted(tmp_path, whole):
    shutil.copy(whole, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(StorageError, match="mlflow db upgrade sqlite:///") as error:
        check_store(f"sqlite:///{tmp_path}/mlflow.db")
    assert "delete" not in str(error.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is a text, and a rather long one at that" * 30)
    with pytest.raises(StorageError, match="no SQLite database"):
        check_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_what_is_no_store_yet_or_is_whole_is_accepted(tmp_path, whole):
    check_store(f"sqlite:///{tmp_path}/nothing.db")
    (tmp_path / "empty.db").touch()
    check_store(f"sqlite:///{tmp_path}/empty.db")
    check_store(f"sqlite:///{whole}")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE of_another_program (a INTEGER)")
    check_store(f"sqlite:///{tmp_path}/other.db")
    assert_usable(f"sqlite:///{tmp_path}/other.db")


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:5000", "sqlite://", "sqlite:///:memory:", "sqlite:///a?b=c"]
)
def test_other_addresses_are_no_files(uri):
    assert store_file(uri) is None
