"""A folder on a disk or in an object store: whole files, written complete or not at all.

What a call has written when it returns survives a power cut (`shoal.storage.durable`; an object store answers when it
has stored). It knows bytes and names. It does not know what a run keeps in them (`shoal.storage.run_folder`).
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from shoal.config.secrets import hide, reveal
from shoal.errors import StorageError
from shoal.storage import durable
from shoal.storage.failures import ALLOW, QUICK_TRIES, REMEDIES, Outage, explained
from shoal.storage.parts import PartAppender, PartReader

S3_TRIES = 3  # of a request, within a second or two

# By the beginning of their URIs (`s3://bucket`): the object stores that this process uses.
_OUTAGES: dict[str, Outage] = {}

Result = TypeVar("Result")


def _arrow_fs() -> Any:
    """Return pyarrow's file systems; the loop alone, on a machine that has torch and little else, does without."""
    from pyarrow import fs

    return fs


def _with_few_tries(fs: Any) -> Any:
    """Return a file system that gives a request up after a second: `Outage` tries it again, and says so.

    By itself the client of S3 tries for 6 to 30 s, in which nothing stops it.
    """
    if fs.type_name != "s3":
        return fs
    _, (options,) = fs.__reduce__()
    few = _arrow_fs().AwsStandardS3RetryStrategy(max_attempts=S3_TRIES)
    return type(fs)(**options, retry_strategy=few)


class Appender(Protocol):
    """Where a journal's bytes go, in order."""

    def write(self, data: bytes) -> None: ...

    def sync(self) -> None: ...


class Folder:
    """A folder named by a path or a URI (`s3://bucket/prefix`)."""

    def __init__(self, uri: str) -> None:
        uri = hide(uri)
        self.is_local = "://" not in uri or uri.startswith("file://")
        self.parts = PartReader(self)  # of an object store: the files that were made by `appender`
        if self.is_local:
            root = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
            self._fs, self._root, self.uri = _arrow_fs().LocalFileSystem(), root, root
            return
        if "?" in uri:
            raise StorageError(
                f"storage '{uri}' has options after '?': give s3://bucket/prefix alone, and set AWS_ENDPOINT_URL "
                "and AWS_DEFAULT_REGION for a server of your own"
            )
        address = reveal(uri).rstrip("/")
        try:
            # With a delayed open a small file is one request, instead of the three of a multipart upload.
            options = "?allow_delayed_open=true" if uri.startswith("s3://") else ""
            fs, self._root = _arrow_fs().FileSystem.from_uri(address + options)
            self._fs = _with_few_tries(fs)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"storage '{uri}' cannot be opened ({error}): give a local path or s3://bucket/prefix"
            ) from None
        self.uri = uri.rstrip("/")
        self._outage = _OUTAGES.setdefault("/".join(self.uri.split("/")[:3]), Outage())

    @property
    def is_away(self) -> bool:
        """Whether the object store does not answer at present."""
        return not self.is_local and self._outage.is_on

    def set_stopping(self, is_stopping: bool) -> None:
        """Wait for seconds alone where the object store is away, or for minutes again."""
        if not self.is_local:
            self._outage.is_stopping = is_stopping

    def local(self, name: str = "") -> Path | None:
        """The path on this machine's disk, or None for an object store."""
        return Path(self._path(name)) if self.is_local else None

    def in_arrow(self, name: str) -> tuple[Any, str]:
        """Return the file system of pyarrow that this folder is in, and a name's path inside it."""
        return self._fs, self._path(name)

    def create(self) -> None:
        """Make the folder and check that it can be written.

        Raises:
            StorageError: with the reason the system gave.
        """
        probe = f"{durable.SCRATCH}{uuid.uuid4().hex}"
        try:
            if self.is_local:
                durable.make_folder(Path(self._root))
                Path(self._path(probe)).touch()  # not to be kept: it needs no sync
            else:
                self._fs.create_dir(self._root, recursive=True)
                self._write(probe, b"", QUICK_TRIES)
            self.delete(probe)
        except StorageError:
            raise  # an object store's
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            remedy = REMEDIES.get(error.errno or 0, ALLOW)
            raise StorageError(f"storage_path '{self.uri}' cannot be written ({reason}): {remedy}") from None

    def exists(self, name: str) -> bool:
        kind = self._retry(lambda: self._fs.get_file_info(self._path(name))).type
        return bool(kind != _arrow_fs().FileType.NotFound)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, or raise FileNotFoundError."""
        return self._retry(lambda: self._read(name))

    def poll(self, name: str, most_tries: int | None = 1) -> bytes | None:
        """Return a file's bytes, or None where it is not there.

        Args:
            most_tries: of an object store that does not answer: once, for who polls comes again; None: as `read` does.
        """
        try:
            return self._retry(lambda: self._read(name), most_tries)
        except FileNotFoundError:
            return None

    def read_from(self, name: str, offset: int, most: int | None = None) -> bytes:
        """Return a file's bytes from an offset on, `most` of them at most."""
        with self._fs.open_input_file(self._path(name)) as stream:
            stream.seek(offset)
            return bytes(stream.read(most))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to read parts of it."""
        with self._fs.open_input_file(self._path(name)) as stream:
            yield stream

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees the old bytes or the new, never a part.

        Raises:
            StorageError: the disk is full or fails, or the object store was away for too long.
        """
        with explained(self._shown(name)):
            self._write(name, data)

    def _write(self, name: str, data: bytes, most_tries: int | None = None) -> None:
        if self.is_local:
            durable.write_file(Path(self._path(name)), data)
        else:
            self._retry(lambda: self._put(name, data), most_tries)

    def names(self, name: str = "", most_tries: int | None = None) -> list[str]:
        """Return the sorted names inside a sub-folder, without scratch; empty when it does not exist."""
        selector = _arrow_fs().FileSelector(self._path(name), allow_not_found=True)
        try:
            found = self._retry(lambda: self._fs.get_file_info(selector), most_tries)
        except FileNotFoundError:  # another process makes it just now
            return []
        return sorted(info.base_name for info in found if not durable.is_scratch(info.base_name))

    def files(self, name: str) -> list[str]:
        """Return the sorted names of all files below a sub-folder, without scratch: `step-1/state.json`."""
        selector = _arrow_fs().FileSelector(self._path(name), allow_not_found=True, recursive=True)
        found = self._retry(lambda: self._fs.get_file_info(selector))
        names = [info.path[len(self._path(name)) + 1 :] for info in found if info.is_file]
        return sorted(one for one in names if not any(map(durable.is_scratch, one.split("/"))))

    def size(self, name: str) -> int:
        return int(self._fs.get_file_info(self._path(name)).size)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing when it is not there."""
        with explained(self._shown(name)):
            self._retry(lambda: self._delete(name))

    def _delete(self, name: str) -> None:
        if self.is_local:
            durable.remove(Path(self._path(name)))
            return
        kind = self._fs.get_file_info(self._path(name)).type
        if kind == _arrow_fs().FileType.Directory:
            self._fs.delete_dir(self._path(name))
        elif kind == _arrow_fs().FileType.File:
            self._fs.delete_file(self._path(name))

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a new local folder: it, or a folder in it, is what `put_folder` moves in under the name.

        What is still in it at the end is removed.

        Raises:
            StorageError: the disk is full or fails.
        """
        with explained(self._shown(name)), contextlib.ExitStack() as stack:
            local = self.local(name)
            if local:
                durable.make_folder(local.parent)
                part = durable.scratch_beside(local)
                part.mkdir()
            else:
                part = Path(tempfile.mkdtemp())
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            yield part

    def put_folder(self, source: Path, name: str, last: str | None) -> None:
        """Move a folder in from `scratch` under a name, complete or absent; until then there is what it replaces.

        Args:
            last: the file whose presence says that the rest is there. In an object store, which has no rename, it is
                written after all others, and one that is there is deleted first: a folder that replaces another is
                absent meanwhile. None: what is put is a part of something that another call completes.

        Raises:
            StorageError: the disk is full or fails, or the object store was away for too long.
        """
        with explained(self._shown(name)):
            self._put_folder(source, name, last)

    def _put_folder(self, source: Path, name: str, last: str | None) -> None:
        if self.is_local:
            durable.move_in(source, Path(self._path(name)))
            return
        if last is not None:
            mark = self._path(f"{name}/{last}")
            with contextlib.suppress(FileNotFoundError):
                self._retry(lambda: self._fs.delete_file(mark))
        files = sorted(path for path in source.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.relative_to(source).as_posix() == last):
            inner = f"{name}/{path.relative_to(source).as_posix()}"
            self._retry(lambda path=path, inner=inner: self._put(inner, path.read_bytes()))  # type: ignore[misc]
        shutil.rmtree(source)

    def copy_folder(self, source: "Folder", name: str, last: str) -> None:
        """Copy a sub-folder from another folder, under the same name, complete or absent (see `put_folder`)."""
        with self.scratch(name) as part:
            for file in source.names(name):
                (part / file).write_bytes(source.read(f"{name}/{file}"))
            self.put_folder(part, name, last)

    def clear_scratch(self, name: str = "") -> None:
        """Remove what killed processes left in a sub-folder; only the process that works on it calls this."""
        if self.is_local:
            durable.clear(Path(self._path(name)))

    def get_folder(self, name: str, target: Path) -> Path:
        """Return a local folder with the sub-folder's files, copied to `target` from an object store."""
        if self.is_local:
            return Path(self._path(name))
        copy, source = _arrow_fs().copy_files, self._path(name)
        self._retry(lambda: copy(source, str(target), source_filesystem=self._fs))
        return target

    def appender(self, name: str) -> Appender:
        """Open something to append to: one file on a disk, numbered parts in an object store."""
        return _FileAppender(Path(self._path(name))) if self.is_local else PartAppender(self, name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, name: str, data: bytes) -> None:
        with self._fs.open_output_stream(self._path(name), compression=None) as stream:
            stream.write(data)

    def _read(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._path(name), compression=None) as stream:
            return bytes(stream.read())

    def _retry(self, work: Callable[[], Result], most_tries: int | None = None) -> Result:
        return work() if self.is_local else self._outage.retry(work, self.uri, most_tries)

    def _shown(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri


class _FileAppender:
    def __init__(self, path: Path) -> None:
        self._path = str(path)
        with explained(self._path):
            durable.make_folder(path.parent)
            self._file: BinaryIO = path.open("ab", buffering=0)
            durable.sync_folder(path.parent)

    def write(self, data: bytes) -> None:
        with explained(self._path):
            while data:  # a raw write may take less than all
                data = data[self._file.write(data) :]

    def sync(self) -> None:
        with explained(self._path):
            os.fsync(self._file.fileno())
