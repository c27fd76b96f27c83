"""The SQLite file of an MLflow store: made whole or not at all, and refused where another program left it half made.

MLflow makes its tables in some fifty steps that take two seconds. A file whose process died in between, or in which two
processes made them at once, is refused by MLflow for ever.
"""

import contextlib
import fcntl
import os
import re
import sqlite3
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from shoal.errors import StorageError

PREFIX = "sqlite:///"
HALF_MADE = "the MLflow store is half made"
MAKING_S, POLL_S = 10.0, 0.5  # another program may be making its tables right now


def store_file(tracking_uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for any other address."""
    path = tracking_uri.removeprefix(PREFIX)
    if path == tracking_uri or not path or path.startswith((":memory:", "file:")) or "?" in path:
        return None
    return Path(path)


def create_store(tracking_uri: str) -> None:
    """Make the SQLite store of an address, unless there is one; one process does so at a time.

    It is made beside its place and then renamed, so that no process ever sees a part of it.
    """
    file = store_file(tracking_uri)
    if file is None or _has_content(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not _has_content(file):
            _make(file)


def check_store(tracking_uri: str) -> None:
    """Refuse an SQLite store that MLflow refuses, before anything is started.

    Raises:
        StorageError: it is half made, made by another version of MLflow, or no database; with the remedy.
    """
    file = store_file(tracking_uri)
    if file is None or not _has_content(file):
        return
    until = time.monotonic() + MAKING_S
    while (complaint := _complaint(file)) and complaint.startswith(HALF_MADE) and time.monotonic() < until:
        time.sleep(POLL_S)
    if complaint:
        raise StorageError(f"track.tracking_uri='{tracking_uri}': {complaint}")


def _complaint(file: Path) -> str | None:
    """Return what is wrong with a store, or None."""
    head = _newest_revision()
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
            tables = {
                name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
            }
            revision, experiments = None, 0
            if "alembic_version" in tables:
                revision = next(
                    (found for (found,) in database.execute("SELECT * FROM alembic_version")), None
                )
            if "experiments" in tables:
                ((experiments,),) = database.execute("SELECT count(*) FROM experiments")
    except sqlite3.OperationalError:
        return None  # in use, or not readable: MLflow waits, or says why
    except sqlite3.DatabaseError as error:
        return f"that file is no SQLite database ({error}): give another file"
    if head is None or revision == head or not tables:
        return None
    if experiments:
        return (
            f"the MLflow store is of another version of MLflow (revision {revision}, needed is {head}): copy the "
            f"file, then run: mlflow db upgrade {PREFIX}{file}"
        )
    if tables & {"alembic_version", "experiments"}:
        return (
            f"{HALF_MADE}: the process that made its tables was killed, or two made them at once. It holds no run: "
            "delete the file, and run the same command again"
        )
    return None  # the database of another program, to which MLflow adds its tables


def _newest_revision() -> str | None:
    """Return the revision of the tables that the installed MLflow needs, without the import of MLflow."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return None
    scripts = Path(spec.origin).parent.joinpath("store", "db_migrations", "versions").glob("*.py")
    text = "\n".join(script.read_text() for script in scripts)
    revisions, before = (
        set(re.findall(rf"^{name} = ['\"](\w+)['\"]", text, re.M)) for name in ("revision", "down_revision")
    )
    heads = revisions - before
    return heads.pop() if len(heads) == 1 else None


def _make(file: Path) -> None:
    """Make a store beside its place, and rename it."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    part = file.with_name(f".{file.name}.part")
    _delete(part)  # of a process that was killed
    try:
        store = SqlAlchemyStore(f"{PREFIX}{part}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        store.engine.dispose()
        part.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        _delete(part)


def _delete(part: Path) -> None:
    for path in (part, part.with_name(f"{part.name}-journal")):
        path.unlink(missing_ok=True)


def _has_content(file: Path) -> bool:
    """Whether there is more than the empty file that a full disk leaves behind."""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False
