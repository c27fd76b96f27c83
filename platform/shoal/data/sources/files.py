"""Reads `csv:`, `parquet:`, `json:` and `npz:` paths: a file, a folder or a glob, on a disk or in an object store."""

import glob
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
from pyarrow import fs as arrow_fs

from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import IN_DRIVER_BYTES, Block, Part, Source, file_size, filesystem_of
from shoal.errors import DataError, UserError

CSV_READ = arrow_csv.ReadOptions(block_size=64 << 20)
CSV_CONVERT = arrow_csv.ConvertOptions(strings_can_be_null=True)
BATCH_ROWS = 1 << 16  # of a large source read at a time


def read_npz(data: Any, path: str) -> Block:
    """Read the arrays of one .npz file; their first dimension is the row."""
    with np.load(data, allow_pickle=False) as arrays:
        block = {name: arrays[name] for name in arrays.files}
    lengths = {name: len(array) for name, array in block.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"'{path}' holds arrays of different lengths {lengths}: rows must match")
    return block


def file_schema(source: Source) -> pa.Schema:
    """Return the columns of a csv, parquet or json source, unified over its files."""
    return _dataset(source.scheme, source.paths).schema


def open_files(scheme: str, uri: str, location: str) -> Source:
    """List the files of a source; they are read later.

    Raises:
        DataError: there are no files, or they are empty; while reading: a file is not of the scheme.
    """
    paths, nbytes = list_files(uri, scheme, location)

    def read() -> Iterator[Block]:
        try:
            if scheme == "npz":
                for path in paths:
                    filesystem, inner = filesystem_of(path)
                    with filesystem.open_input_file(inner) as stream:
                        yield read_npz(stream, path)
            elif scheme == "json" and _is_json_array(paths[0]):
                for path in paths:
                    filesystem, inner = filesystem_of(path)
                    with filesystem.open_input_stream(inner) as stream:
                        yield table_to_block(_records(json.loads(stream.read())))
            else:
                yield from _read_tables(scheme, paths)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data.source='{uri}' does not read as {scheme} ({reason}): fix the file, or name another scheme"
            ) from error

    return Source(uri, scheme, (Part(read),), nbytes=nbytes, paths=paths)


def _read_tables(scheme: str, paths: tuple[str, ...]) -> Iterator[Block]:
    dataset = _dataset(scheme, paths)
    if sum(file_size(path) for path in paths) <= IN_DRIVER_BYTES:
        yield table_to_block(dataset.to_table())
        return
    for batch in dataset.to_batches(batch_size=BATCH_ROWS):
        if batch.num_rows:
            yield table_to_block(pa.Table.from_batches([batch]))


def _dataset(scheme: str, paths: tuple[str, ...]) -> Any:
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
    each = [arrow_dataset.dataset([path], format=formats[scheme](), filesystem=filesystem) for path in inner]
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


def _records(rows: list[Any]) -> pa.Table:
    """Return a table of JSON objects, with every key that any of them has."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its items are not all objects")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _is_json_array(path: str) -> bool:
    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read(64)).lstrip()[:1] == b"["
