"""Reads `csv:`, `parquet:`, `json:` and `npz:` paths: a file, a folder or a glob, on a disk or in an object store."""

import contextlib
import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
from pyarrow import fs as arrow_fs

from shoal.data.sampler import SPLIT_NAMES, SPLITS, TRAIN, split_named
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import (
    DETECTED,
    IN_DRIVER_BYTES,
    Block,
    Chunks,
    Part,
    ReadOptions,
    Source,
    file_size,
    filesystem_of,
)
from shoal.errors import DataError, UserError

CSV_READ = arrow_csv.ReadOptions(block_size=64 << 20)
CSV_CONVERT = arrow_csv.ConvertOptions(strings_can_be_null=True)
BATCH_ROWS = 1 << 16  # of a large source read at a time
SPLIT_WORD = re.compile(rf"(?:^|[-._ ])({'|'.join(SPLIT_NAMES)})(?=$|[-._ 0-9])", re.IGNORECASE)


def open_file(path: str) -> Any:
    """Open a file on a disk or in an object store, to read it from any place."""
    filesystem, inner = filesystem_of(path)
    return filesystem.open_input_file(inner)


def read_npz(data: Any, path: str) -> Block:
    """Read the arrays of one .npz file; their first dimension is the row."""
    with np.load(data, allow_pickle=False) as arrays:
        block = {name: arrays[name] for name in arrays.files}
    lengths = {name: len(array) for name, array in block.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"'{path}' holds arrays of different lengths {lengths}: rows must match")
    return block


def open_files(scheme: str, uri: str, location: str, options: ReadOptions = DETECTED) -> Source:
    """List the files of a source; they are read later.

    Raises:
        DataError: there are no files, or they are empty, or some are of splits and others not; while reading: a file is
            not of the scheme.
    """
    paths, nbytes = list_files(uri, scheme, location)
    parts = given_splits(uri, location, paths)
    files = _Files(uri, scheme, tuple(path for part in parts.values() for path in part), nbytes)
    return Source(uri, scheme, tuple(files.part(split, part) for split, part in parts.items()), nbytes=nbytes)


@dataclass(frozen=True)
class _Files:
    """The files of a source, whose columns have one type over all of them."""

    uri: str
    scheme: str
    paths: tuple[str, ...]
    nbytes: int

    def part(self, split: str | None, paths: tuple[str, ...]) -> Part:
        def read() -> Iterator[Block]:
            if self.nbytes > IN_DRIVER_BYTES or not self._holds_tables():
                yield from self.chunks(paths).blocks()
                return
            with self._explained():
                yield table_to_block(_dataset(self.scheme, paths, self.paths).to_table())

        return Part(read, split, paths, chunks=lambda: self.chunks(paths))

    def chunks(self, paths: tuple[str, ...]) -> Chunks:
        """Return what is read by itself: a file, or a row group of a Parquet file."""
        if not self._holds_tables():
            return Chunks(len(paths), lambda number: self._read_file(paths[number]))
        with self._explained():
            dataset = _dataset(self.scheme, paths, self.paths)
            fragments = list(dataset.get_fragments())
            if self.scheme == "parquet":
                fragments = [group for fragment in fragments for group in fragment.split_by_row_group()]
        schema = dataset.schema

        def read(number: int) -> Iterator[Block]:
            with self._explained():
                for batch in fragments[number].to_batches(schema=schema, batch_size=BATCH_ROWS):
                    if batch.num_rows:
                        yield table_to_block(pa.Table.from_batches([batch]))

        return Chunks(len(fragments), read)

    def _holds_tables(self) -> bool:
        """Whether Arrow reads the files."""
        with self._explained():
            return self.scheme != "npz" and not (self.scheme == "json" and _is_json_array(self.paths[0]))

    def _read_file(self, path: str) -> Iterator[Block]:
        """Read a file that Arrow does not."""
        with self._explained(), open_file(path) as stream:
            yield read_npz(stream, path) if self.scheme == "npz" else read_json_array(stream)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of reading into one that says which source it is of, and what to do."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data.source='{self.uri}' does not read as {self.scheme} ({reason}): fix the file, or name another "
                "scheme"
            ) from error


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
    if not is_folder(location):
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


def _dataset(scheme: str, paths: tuple[str, ...], all_paths: tuple[str, ...]) -> Any:
    """Return some of a source's files as an Arrow dataset, with the columns and types of all of them."""
    import pyarrow.dataset as arrow_dataset  # imported here: it imports pandas, which workers do not need

    formats = {
        "csv": lambda: arrow_dataset.CsvFileFormat(
            parse_options=arrow_csv.ParseOptions(), read_options=CSV_READ, convert_options=CSV_CONVERT
        ),
        "json": lambda: arrow_dataset.JsonFileFormat(
            read_options=arrow_json.ReadOptions(block_size=64 << 20)
        ),
        "parquet": arrow_dataset.ParquetFileFormat,
    }
    filesystem, _ = filesystem_of(paths[0])
    inner = [filesystem_of(path)[1] for path in paths]
    each = [
        arrow_dataset.dataset([filesystem_of(path)[1]], format=formats[scheme](), filesystem=filesystem)
        for path in all_paths
    ]
    schema = pa.unify_schemas([one.schema for one in each], promote_options="permissive")
    if scheme == "csv":
        # With the types unified over all files: a column of integers in one file and of fractions in the next is
        # read alike in both.
        convert = arrow_csv.ConvertOptions(strings_can_be_null=True, column_types=schema)
        reader = arrow_dataset.CsvFileFormat(read_options=CSV_READ, convert_options=convert)
        return arrow_dataset.dataset(inner, format=reader, filesystem=filesystem, schema=schema)
    return arrow_dataset.dataset(inner, format=formats[scheme](), filesystem=filesystem, schema=schema)


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
                paths = [prefix + one.path for one in infos if one.type == arrow_fs.FileType.File]
            else:
                paths = [location] if info.type == arrow_fs.FileType.File else []
        elif os.path.isdir(os.path.expanduser(location)):
            pattern = os.path.join(os.path.expanduser(location), "**", "*")
            paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        else:
            paths = [path for path in glob.glob(os.path.expanduser(location)) if os.path.isfile(path)]
        paths = sorted(
            path for path in paths if path == location or not os.path.basename(path).startswith(hidden)
        )
        nbytes = sum(file_size(path) for path in paths)
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


def read_json_array(stream: Any) -> Block:
    """Read a file that holds one array of JSON objects, with every key that any of them has."""
    rows = json.loads(stream.read())
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its items are not all objects")
    names = dict.fromkeys(name for row in rows for name in row)
    return table_to_block(pa.table({name: [row.get(name) for row in rows] for name in names}))


def _is_json_array(path: str) -> bool:
    with open_file(path) as stream:
        return bytes(stream.read(64)).lstrip()[:1] == b"["
