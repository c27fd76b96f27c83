"""Reads `csv:`, `parquet:`, `json:` and `npz:` paths: a file, a folder or a glob, on a disk or in an object store."""

import contextlib
import glob
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

import pyarrow as pa
from pyarrow import fs as arrow_fs

from shoal.data.images import SUFFIXES as IMAGE_SUFFIXES
from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sampler import SPLIT_NAMES, SPLITS, TRAIN, split_named
from shoal.data.sources.base import (
    IN_DRIVER_BYTES,
    Block,
    Chunks,
    OtherTypesError,
    Part,
    Source,
    filesystem_of,
)
from shoal.data.sources.csv_files import CsvReader, open_csv
from shoal.data.sources.json_files import JsonReader
from shoal.data.sources.npz_files import NpzReader, array_splits
from shoal.data.sources.opening import File, check_encoding, decoded_size, is_archive, members
from shoal.data.sources.parquet_files import ParquetReader, rows_size
from shoal.data.sources.tables import partitions
from shoal.errors import DataError

SPLIT_WORD = re.compile(rf"(?:^|[-._ ])({'|'.join(SPLIT_NAMES)})(?=$|[-._ 0-9])", re.IGNORECASE)
SUFFIXES = {
    "csv": (".csv", ".tsv", ".tab", ".psv"),
    "parquet": (".parquet", ".parq", ".pq"),
    "json": (".json", ".jsonl", ".ndjson"),
    "npz": (".npz", ".npy"),
}
BINARY = ("parquet", "npz", "images")  # their files are of no other scheme, whatever they are called


class Reader(Protocol):
    """Reads files of one kind.

    Attributes:
        notes: a line for each thing that was detected.
    """

    notes: tuple[str, ...]

    def whole(self, files: tuple[File, ...]) -> Iterator[Block]: ...

    def chunks(self, files: tuple[File, ...]) -> Chunks: ...


def open_files(scheme: str, uri: str, location: str, options: ReadOptions = DETECTED) -> Source:
    """List the files of a source; they are read later, but for samples that show how they are written.

    Raises:
        DataError: there are no files, or they are empty, or some are of splits and others not, or they are written in
            several ways; while reading: a file is not of the scheme.
    """
    check_encoding(options.encoding)
    paths, nbytes = list_files(uri, scheme, location)
    listed = {
        file.name: file for path in paths for file in (members(path) if scheme != "npz" else [File(path)])
    }
    listed, notes = _of_scheme(scheme, uri, listed, is_folder(location) or any(map(is_archive, paths)))
    files = tuple(listed.values())
    nbytes = rows_size(files) if scheme == "parquet" else max(nbytes, sum(map(decoded_size, files)))
    if scheme == "npz" and options.arrays:
        splits = array_splits(options)
        parts = tuple(
            _part(NpzReader(uri, options, columns), split, files, nbytes) for split, columns in splits.items()
        )
        return Source(uri, scheme, parts, nbytes=nbytes, digest=None, notes=notes)
    reader = _reader(scheme, uri, location, files, options)
    named = given_splits(uri, location, tuple(listed))
    parts = tuple(
        _part(reader, split, tuple(listed[name] for name in names), nbytes) for split, names in named.items()
    )
    return Source(uri, scheme, parts, nbytes=nbytes, notes=notes + reader.notes)


def _reader(scheme: str, uri: str, location: str, files: tuple[File, ...], options: ReadOptions) -> Reader:
    if scheme == "npz":
        return NpzReader(uri, options, {})
    constants = partitions(list(files), _root(location))
    if scheme == "csv":
        return open_csv(uri, files, options, constants)
    return (JsonReader if scheme == "json" else ParquetReader)(uri, files, options, constants)


def _part(reader: Reader, split: str | None, files: tuple[File, ...], nbytes: int) -> Part:
    relearn = reader.relearn if isinstance(reader, CsvReader) else None

    def read() -> Iterator[Block]:
        if nbytes <= IN_DRIVER_BYTES:
            yield from reader.whole(files)
            return
        while True:
            try:
                for block in reader.chunks(files).blocks():
                    if isinstance(reader, CsvReader):
                        reader.is_begun = True
                    yield block
                return
            except OtherTypesError as error:
                assert isinstance(reader, CsvReader)
                reader.relearn(error)
                if reader.is_begun:  # blocks with other types are out: the whole source must be read again
                    reader.is_begun = False
                    raise

    paths = tuple(dict.fromkeys(file.path for file in files))
    return Part(read, split, paths, chunks=lambda: reader.chunks(files), relearn=relearn)


def _of_scheme(
    scheme: str, uri: str, listed: dict[str, File], is_many: bool
) -> tuple[dict[str, File], tuple[str, ...]]:
    """Leave out files of a folder or an archive whose suffix is not of the scheme, if others' suffixes are."""
    own = {name: file for name, file in listed.items() if file.suffix in SUFFIXES[scheme]}
    if not listed:
        raise DataError(f"data.source='{uri}' is an archive without files: name one with {scheme} files")
    _refuse_other_scheme(scheme, uri, listed)
    if not is_many or not own or len(own) == len(listed):
        return listed, ()
    others = [name for name in listed if name not in own]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    shown = ", ".join(f"'{name}'" for name in others[:3]) + more
    return own, (f"{shown}: left out, since {', '.join(SUFFIXES[scheme])} files lie beside",)


def _refuse_other_scheme(scheme: str, uri: str, listed: Collection[str]) -> None:
    """Refuse files all of whose names are of another scheme, e.g. a folder of photos as `csv:`."""
    for other, suffixes in (SUFFIXES | {"images": IMAGE_SUFFIXES}).items():
        if other == scheme or not {scheme, other} & {*BINARY}:
            continue
        if all(name.lower().endswith(suffixes) for name in listed):
            location = uri.partition(":")[2]
            how = (
                "images:DIR, a folder with a folder per class" if other == "images" else f"{other}:{location}"
            )
            raise DataError(
                f"data.source='{uri}' names files of another kind, e.g. '{next(iter(listed))}': write {how}"
            )


def _root(location: str) -> str:
    """Return the part of a location that folders of partitions are below: a path without what a glob matches."""
    expanded = location if "://" in location else os.path.abspath(os.path.expanduser(location))
    return re.split(r"[*?\[]", expanded)[0].rpartition("/")[0] if not is_folder(location) else expanded


def given_splits(uri: str, location: str, paths: tuple[str, ...]) -> dict[str | None, tuple[str, ...]]:
    """Divide the files of a folder among the splits that the files and folders at its top are named after.

    As on the Hub, `train.csv`, `train/`, `wiki.train.tokens` and `train-00000-of-00002.parquet` are of the split train.
    A file or a glob that is named outright is one set, and so is a folder whose names do not state train and another.

    Returns:
        the files by split, in the order of `SPLITS`; all of them under None where they state no splits.

    Raises:
        DataError: names state splits, and other files lie beside them.
    """
    top = _top_names(location, paths)
    named = {path: _named_split(name) for path, name in zip(paths, top, strict=True)}
    found = set(named.values()) - {None}
    if TRAIN not in found or len(found) < 2:
        return {None: paths}
    odd = next((name for path, name in zip(paths, top, strict=True) if named[path] is None), None)
    if odd is not None:
        raise DataError(
            f"data.source='{uri}' has '{odd}' beside the splits {', '.join(name for name in SPLITS if name in found)}: "
            f"move it elsewhere, or read all files as one set by a glob, e.g. {uri.rstrip('/')}/*"
        )
    return {
        split: tuple(path for path in paths if named[path] == split) for split in SPLITS if split in found
    }


def _top_names(location: str, paths: tuple[str, ...]) -> list[str]:
    """Return for each path the name at the top of the folder that it was found in; empty where no folder was named."""
    if not is_folder(location) and not is_archive(location):
        return [""] * len(paths)
    root = location if "://" in location else os.path.abspath(os.path.expanduser(location))
    return [path[len(root.rstrip("/")) + 1 :].partition("/")[0] for path in paths]


def is_folder(location: str) -> bool:
    """Whether a location is a folder, on a disk or in an object store, not a file or a glob."""
    filesystem, inner = filesystem_of(os.path.expanduser(location))
    return bool(filesystem.get_file_info(inner).type == arrow_fs.FileType.Directory)


def _named_split(name: str) -> str | None:
    """Return the split that a name states, or None; a name with the words of two splits states none."""
    found = {split_named(word) for word in SPLIT_WORD.findall(name)}
    return found.pop() if len(found) == 1 else None


def _below(folder: str) -> Iterator[str]:
    """Yield the paths of a folder, and of those in it that are not hidden."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in names)


def _with_sizes(paths: Iterable[str]) -> dict[str, int]:
    """Return the files among some paths of a disk, with their sizes."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # a link to nothing
            info = os.stat(path)
            if stat.S_ISREG(info.st_mode):
                found[path] = info.st_size
    return found


def list_files(uri: str, scheme: str, location: str) -> tuple[tuple[str, ...], int]:
    """List the files of a path, a glob, a directory or an s3:// prefix, sorted, with their total size."""
    hidden = (".",) if scheme == "text" else (".", "_")  # __init__.py is text, _SUCCESS is no table
    try:
        if "://" in location:
            filesystem, inner = filesystem_of(location)
            prefix = location[: len(location) - len(inner)]
            info = filesystem.get_file_info(inner)
            if info.type == arrow_fs.FileType.Directory:
                infos = filesystem.get_file_info(arrow_fs.FileSelector(inner, recursive=True))
                files = [one for one in infos if one.type == arrow_fs.FileType.File]
                sizes = {prefix + one.path: int(one.size or 0) for one in files}
            else:
                sizes = {location: int(info.size or 0)} if info.type == arrow_fs.FileType.File else {}
        elif os.path.isdir(os.path.expanduser(location)):
            sizes = _with_sizes(_below(os.path.expanduser(location)))
        else:
            sizes = _with_sizes(glob.glob(os.path.expanduser(location)))
        paths = sorted(
            path for path in sizes if path == location or not os.path.basename(path).startswith(hidden)
        )
        nbytes = sum(sizes[path] for path in paths)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.source='{uri}' cannot be listed ({error}): check the address") from None
    if not paths:
        raise DataError(
            f"data.source='{uri}': no file '{location}', seen from {os.getcwd()}: "
            f"give the path of a {scheme} file, a directory of them, or a glob"
        )
    if nbytes == 0:
        raise DataError(f"data.source='{uri}' is empty (0 bytes): give a file with rows")
    # Absolute: the processes of a cluster that was started before have working directories of their own.
    return tuple(path if "://" in path else os.path.abspath(path) for path in paths), nbytes
