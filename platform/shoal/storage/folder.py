"""A folder on a disk or in an object store: whole files, written complete or not at all.

It knows bytes and names. It does not know what a run keeps in them (`shoal.storage.run_folder`).
"""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from shoal.errors import StorageError

RETRIES = 4


def _arrow_fs() -> Any:
    """Return pyarrow's file systems; the loop alone, on a machine that has torch and little else, does without."""
    from pyarrow import fs

    return fs


class Appender(Protocol):
    """Where a journal's bytes go, in order."""

    def write(self, data: bytes) -> None: ...

    def sync(self) -> None: ...


class Folder:
    """A folder named by a path or a URI (`s3://bucket/prefix`)."""

    def __init__(self, uri: str) -> None:
        self.is_local = "://" not in uri or uri.startswith("file://")
        if self.is_local:
            root = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
            self._fs, self._root, self.uri = _arrow_fs().LocalFileSystem(), root, root
            return
        if "?" in uri:
            raise StorageError(
                f"storage '{uri}' has options after '?': give s3://bucket/prefix alone, and set AWS_ENDPOINT_URL "
                "and AWS_DEFAULT_REGION for a server of your own"
            )
        try:
            self._fs, self._root = _arrow_fs().FileSystem.from_uri(uri)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"storage '{uri}' cannot be opened ({error}): give a local path or s3://bucket/prefix"
            ) from None
        self.uri = uri.rstrip("/")

    def local(self, name: str = "") -> Path | None:
        """The path on this machine's disk, or None for an object store."""
        return Path(self._path(name)) if self.is_local else None

    def create(self) -> None:
        """Make the folder and check that it can be written.

        Raises:
            StorageError: with the reason the system gave.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self._fs.create_dir(self._root, recursive=True)
            self.write(probe, b"")
            self.delete(probe)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StorageError(
                f"storage_path '{self.uri}' cannot be written ({reason}): "
                "give a folder that this user may write, shared by all nodes"
            ) from None

    def exists(self, name: str) -> bool:
        kind = self._fs.get_file_info(self._path(name)).type
        return bool(kind != _arrow_fs().FileType.NotFound)

    def read(self, name: str) -> bytes:
        """Return a file's bytes, or raise FileNotFoundError."""
        with self._fs.open_input_stream(self._path(name), compression=None) as stream:
            return bytes(stream.read())

    def read_from(self, name: str, offset: int) -> bytes:
        """Return a file's bytes from an offset on."""
        with self._fs.open_input_file(self._path(name)) as stream:
            stream.seek(offset)
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees the old bytes or the new, never a part."""
        if self.is_local:
            path = Path(self._path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            try:
                part.write_bytes(data)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        else:
            self._retry(lambda: self._put(name, data))

    def names(self, name: str = "") -> list[str]:
        """Return the sorted names inside a sub-folder; empty when it does not exist."""
        selector = _arrow_fs().FileSelector(self._path(name), allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def size(self, name: str) -> int:
        return int(self._fs.get_file_info(self._path(name)).size)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing when it is not there."""
        kind = self._fs.get_file_info(self._path(name)).type
        if kind == _arrow_fs().FileType.Directory:
            self._fs.delete_dir(self._path(name))
        elif kind == _arrow_fs().FileType.File:
            self._fs.delete_file(self._path(name))

    def put_folder(self, source: Path, name: str, last: str | None = None) -> None:
        """Move a local folder in under a name, complete or absent.

        On a disk that is one rename. In an object store, where there is none, the file called `last` is
        written after all others, so that its presence says the rest is there.
        """
        if self.is_local:
            target = Path(self._path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            shutil.move(source, target)
            return
        files = sorted(path for path in source.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == last):
            inner = f"{name}/{path.relative_to(source).as_posix()}"
            self._retry(lambda path=path, inner=inner: self._put(inner, path.read_bytes()))  # type: ignore[misc]
        shutil.rmtree(source)

    def copy_folder(self, source: "Folder", name: str, last: str | None = None) -> None:
        """Copy a sub-folder from another folder, under the same name, complete or absent (see `put_folder`)."""
        with tempfile.TemporaryDirectory(dir=self._local_scratch()) as scratch:
            part = Path(scratch) / "part"
            part.mkdir()
            for file in source.names(name):
                (part / file).write_bytes(source.read(f"{name}/{file}"))
            self.put_folder(part, name, last)

    def get_folder(self, name: str, target: Path) -> Path:
        """Return a local folder with the sub-folder's files, copied to `target` from an object store."""
        if self.is_local:
            return Path(self._path(name))
        _arrow_fs().copy_files(
            self._path(name), str(target), source_filesystem=self._fs, destination_filesystem=None
        )
        return target

    def appender(self, name: str) -> Appender:
        """Open something to append to: one file on a disk, numbered parts in an object store."""
        return _FileAppender(Path(self._path(name))) if self.is_local else _PartAppender(self, name)

    def _local_scratch(self) -> str | None:
        """A place from which a folder can be moved in with one rename."""
        return self._root if self.is_local else None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, name: str, data: bytes) -> None:
        with self._fs.open_output_stream(self._path(name), compression=None) as stream:
            stream.write(data)

    def _retry(self, work: Callable[[], None]) -> None:
        for attempt in range(RETRIES):
            try:
                return work()
            except OSError:
                if attempt == RETRIES - 1:
                    raise
                time.sleep(0.5 * 2**attempt)


class _FileAppender:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        while data:  # a raw write may take less than all
            data = data[self._file.write(data) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())


class _PartAppender:
    """An object store cannot append: bytes gather for a while, then become the next part."""

    PART_S = 5.0

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._stem = folder, name
        parent, _, stem = name.rpartition("/")
        earlier = [part for part in folder.names(parent) if part.startswith(f"{stem}.")]
        # A restarted worker opens its journal again: its parts follow the existing ones.
        self._number = max((int(part.rpartition(".")[2]) + 1 for part in earlier), default=0)
        self._gathered, self._since = b"", time.monotonic()

    def write(self, data: bytes) -> None:
        self._gathered += data
        if time.monotonic() - self._since > self.PART_S:
            self.sync()

    def sync(self) -> None:
        if self._gathered:
            self._folder.write(f"{self._stem}.{self._number:06d}", self._gathered)
            self._number += 1
            self._gathered = b""
        self._since = time.monotonic()
