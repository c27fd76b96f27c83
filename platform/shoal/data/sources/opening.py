"""Opens files: plain ones, compressed ones and members of archives; text of any encoding is read as UTF-8."""

import codecs
import contextlib
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shoal.data.sources.base import file_size, filesystem_of
from shoal.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": "xz"}
ZIP = (".zip",)
TAR = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
# What a file is that begins so, and what to do with it.
NO_TEXT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: name it .zip, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV",
    b"\x1f\x8b": "compressed by gzip: name it .gz",
    b"BZh": "compressed by bzip2: name it .bz2",
    b"\xfd7zXZ": "compressed by xz: name it .xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: name it .zst",
    b"PAR1": "a Parquet file: read it with parquet:",
    b"\x93NUMPY": "a NumPy array: read it with npz:",
    b"SQLite format 3": "a SQLite database: save the table as CSV or Parquet",
    b"%PDF": "a PDF: save its table as CSV",
    b"<!doctype html": "a web page, as of a download that failed: download the file again",
    b"<html": "a web page, as of a download that failed: download the file again",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: get it with `git lfs pull`",
}
EXPANSION = 5  # of a compressed file that does not say how large its content is
READ_BYTES = 1 << 20
UTF8 = "utf-8"


@dataclass(frozen=True)
class File:
    """A file, or a member of an archive; `name` is what messages call it."""

    path: str
    member: str | None = None

    @property
    def name(self) -> str:
        return self.path if self.member is None else f"{self.path}/{self.member}"

    @property
    def compression(self) -> str | None:
        return COMPRESSIONS.get(os.path.splitext(self.name.lower())[1])

    @property
    def suffix(self) -> str:
        """The suffix in lower case, without that of a compression."""
        stem, suffix = os.path.splitext(self.name.lower())
        return os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix

    @property
    def is_plain(self) -> bool:
        """Whether the bytes of the file are those of its content."""
        return self.member is None and self.compression is None


def is_archive(path: str) -> bool:
    """Whether a file holds others, by its name."""
    return path.lower().endswith((*ZIP, *TAR))


def members(path: str) -> list[File]:
    """Return the files of an archive by their names, hidden ones left out; a plain file is itself.

    Raises:
        DataError: it is not an archive, or is encrypted.
    """
    if not is_archive(path):
        return [File(path)]
    try:
        with open_plain(path) as stream:
            if path.lower().endswith(ZIP):
                with zipfile.ZipFile(stream) as archive:
                    infos = archive.infolist()
                    if any(info.flag_bits & 1 for info in infos):
                        raise DataError(f"'{path}' is encrypted: unpack it, and name the folder")
                    names = [info.filename for info in infos if not info.is_dir()]
            else:
                with tarfile.open(fileobj=stream, mode="r:*") as tar:
                    names = [member.name for member in tar if member.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, pa.ArrowException, EOFError) as error:
        raise DataError(
            f"'{path}' is no archive that can be read ({error}): unpack it, and name the folder"
        ) from None
    return [File(path, name) for name in sorted(names) if not _is_hidden(name)]


def _is_hidden(member: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in member.split("/") if part != ".")


def open_plain(path: str) -> Any:
    """Open a file on a disk or in an object store, to read it from any place."""
    filesystem, inner = filesystem_of(path)
    return filesystem.open_input_file(inner)


@contextlib.contextmanager
def open_bytes(file: File) -> Iterator[Any]:
    """Open the content of a file: unpacked, not decoded."""
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(open_plain(file.path))
        if file.member is not None:
            stream = stack.enter_context(_open_member(file.path, file.member, stream, stack))
        if file.compression == "xz":
            stream = stack.enter_context(lzma.open(stream))
        elif file.compression:
            stream = stack.enter_context(pa.CompressedInputStream(stream, file.compression))
        yield stream if isinstance(stream, pa.NativeFile) else pa.PythonFile(stream, mode="r")


def _open_member(path: str, member: str, stream: Any, stack: contextlib.ExitStack) -> Any:
    if path.lower().endswith(ZIP):
        return stack.enter_context(zipfile.ZipFile(stream)).open(member)
    opened = stack.enter_context(tarfile.open(fileobj=stream, mode="r:*")).extractfile(member)
    assert opened is not None
    return opened


@contextlib.contextmanager
def open_text(file: File, encoding: str) -> Iterator[Any]:
    """Open a text file as UTF-8."""
    with open_bytes(file) as stream:
        yield stream if encoding == UTF8 else pa.transcoding_input_stream(stream, encoding, UTF8)


def decoded_size(file: File) -> int:
    """Return the size of a file's content; an estimate where the file does not say."""
    size = file_size(file.path)
    if file.member is not None:
        with open_plain(file.path) as stream:
            if file.path.lower().endswith(ZIP):
                with zipfile.ZipFile(stream) as archive:
                    size = archive.getinfo(file.member).file_size
            else:
                with tarfile.open(fileobj=stream, mode="r:*") as tar:
                    size = tar.getmember(file.member).size
        return size * (EXPANSION if file.compression else 1)
    if file.compression == "gzip" and size > 18:
        with open_plain(file.path) as stream:
            stream.seek(size - 4)
            said = int.from_bytes(stream.read(4), "little")
        # The trailer holds the size modulo 4 GiB, of the last part where files were joined.
        return said if said > size else size * EXPANSION
    return size * (EXPANSION if file.compression else 1)


def check_encoding(encoding: str | None) -> None:
    """Refuse an encoding that Python does not know.

    Raises:
        DataError: as said.
    """
    if encoding is None:
        return
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(
            f"data.encoding='{encoding}' is no encoding that Python knows: write e.g. utf-8, latin-1, utf-16 or "
            "gb18030"
        ) from None


def check_is_text(file: File, head: bytes) -> None:
    """Refuse a file that begins as those do that hold no rows of text.

    Raises:
        DataError: what it is, and the remedy.
    """
    begins = head.lstrip()[:32].lower()
    for mark, what in NO_TEXT.items():
        if begins.startswith(mark.lower()):
            raise DataError(f"'{file.name}' is {what}")


def unclear_encoding(file: File) -> DataError:
    """Return the error for a file that is not UTF-8, and of which nothing else is clear."""
    where = _undecodable_at(file, UTF8)
    return DataError(
        f"'{file.name}' is not UTF-8{f' {where}' if where else ''}, and its encoding is not clear: name it, e.g. "
        "data.encoding=cp1252, cp1251, shift_jis, euc_kr, big5 or utf-16"
    )


def undecodable(file: File, encoding: str) -> DataError | None:
    """Return an error that names the first byte of a file that is not of an encoding; None: there is none."""
    where = _undecodable_at(file, encoding)
    if where is None:
        return None
    other = "cp1252" if encoding == UTF8 else UTF8
    return DataError(
        f"'{file.name}' is not {encoding} {where}: name its encoding, e.g. data.encoding={other}, or convert the file"
    )


def _undecodable_at(file: File, encoding: str) -> str | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line = 0, 1  # of the first byte that is not decoded yet
    with open_bytes(file) as stream:
        while True:
            chunk = bytes(stream.read(READ_BYTES))
            held = decoder.getstate()[0]
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                return f"at byte {offset + error.start} (line {line}, {error.object[error.start]:#04x})"
            if not chunk:
                return None
            offset += len(held) + len(chunk) - len(decoder.getstate()[0])
