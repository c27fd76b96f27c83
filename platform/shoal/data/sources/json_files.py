"""Reads JSON files: one object per line, or one array of objects in a file."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.json as arrow_json

from shoal.data.read_options import ReadOptions
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import Block, Chunks
from shoal.data.sources.encoding import find_encoding
from shoal.data.sources.opening import (
    UTF8,
    File,
    check_is_text,
    open_bytes,
    open_text,
    unclear_encoding,
    undecodable,
)
from shoal.data.sources.parquet_files import unified
from shoal.data.sources.tables import (
    Constants,
    check_names,
    check_types,
    flatten,
    missing_list,
    null_list,
    with_constants,
    with_kinds,
)
from shoal.errors import DataError

BLOCK_BYTES = 64 << 20  # whose rows show the keys and types of a file
HEAD_BYTES = 1 << 16
CHANGED = re.compile(r"Column\(/(.+)\) changed from (\w+) to (\w+)")
SHOWN = 60  # characters of a line in a message


@dataclass
class JsonReader:
    """The files of a source, whose columns have one type over all of them."""

    uri: str
    files: tuple[File, ...]
    options: ReadOptions
    constants: Constants
    notes: tuple[str, ...] = ()
    _encodings: dict[File, str] = field(default_factory=dict, repr=False)
    _is_array: dict[File, bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for file in self.files:
            with open_bytes(file) as stream:
                head = bytes(stream.read(HEAD_BYTES))
            check_is_text(file, head)
            encoding = self.options.encoding or find_encoding([head])
            if encoding is None:
                raise unclear_encoding(file)
            if encoding != UTF8 and not self.options.encoding:
                self.notes += (f"'{file.name}': its encoding is {encoding} (data.encoding)",)
            # Arrow's reader of JSON does not skip the mark of UTF-8.
            self._encodings[file] = "utf-8-sig" if head.startswith(b"\xef\xbb\xbf") else encoding
            self._is_array[file] = head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")[:1] == "["

    def whole(self, files: tuple[File, ...]) -> Iterator[Block]:
        """Read files in this process, all at once."""
        tables = [self._finish(file, self._read(file, self.schema)) for file in files]
        yield table_to_block(pa.concat_tables(tables))

    def chunks(self, files: tuple[File, ...]) -> Chunks:
        """Return the files, each of which any process can read."""
        schema = self.schema

        def read(number: int) -> Iterator[Block]:
            file = files[number]
            row = 0
            for table in self._batches(file, schema):
                yield table_to_block(self._finish(file, table, row))
                row += table.num_rows

        return Chunks(len(files), read)

    @cached_property
    def schema(self) -> pa.Schema:
        """The keys and types of all files."""
        each = []
        for file in self.files:
            with self._explained(file):
                if self._is_array[file]:
                    each.append(self._read_array(file).schema)
                else:
                    with self._open(file) as stream:
                        reader = arrow_json.open_json(stream, _read_options())
                        each.append(reader.schema)
                    if all(map(pa.types.is_nested, reader.schema.types)) and self._is_one_object(file):
                        raise ValueError(
                            "it is one object of columns, as pandas' to_json writes (orient='records')"
                        )
        schema = unified(each, self.files)
        flat = flatten(schema.empty_table()).schema
        check_names(self.uri, [*flat.names, *next(iter(self.constants.values()), {})], self.options)
        check_types(flat, self.options, f"data.source='{self.uri}'")
        return schema

    def _finish(self, file: File, table: pa.Table, first_row: int = 0) -> pa.Table:
        table = with_kinds(with_constants(flatten(table), self.constants.get(file)), self.options)
        found = null_list(table)
        if found:
            raise missing_list(found[0], first_row + found[1], file)
        return table

    def _read(self, file: File, schema: pa.Schema) -> pa.Table:
        with self._explained(file):
            if self._is_array[file]:
                return self._read_array(file, schema)
            with self._open(file) as stream:
                return arrow_json.read_json(stream, _read_options(), _parse_options(schema))

    def _batches(self, file: File, schema: pa.Schema) -> Iterator[pa.Table]:
        if self._is_array[file]:
            yield self._read(file, schema)
            return
        with self._explained(file), self._open(file) as stream:
            for batch in arrow_json.open_json(stream, _read_options(), _parse_options(schema)):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])

    def _read_array(self, file: File, schema: pa.Schema | None = None) -> pa.Table:
        """Read a file that holds one array of JSON objects, with every key that any of them has."""
        with self._open(file) as stream:
            rows = json.loads(bytes(stream.read()))
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its items are not all objects")
        names = schema.names if schema else dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        if schema:
            return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in names})
        return pa.table({name: _column(name, values) for name, values in columns.items()})

    def _open(self, file: File) -> Any:
        return open_text(file, self._encodings[file])

    @contextlib.contextmanager
    def _explained(self, file: File) -> Iterator[None]:
        """Turn an error of reading into one that names the file, the cause and the remedy."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            bad = undecodable(file, self._encodings[file])
            if bad:
                raise bad from None
            changed = CHANGED.search(str(error))
            if changed:
                key = changed[1].replace("/", ".")
                raise DataError(
                    f"data.source='{self.uri}' does not read as json: '{file.name}': key '{key}' "
                    f"holds a {changed[2]} in some rows and a {changed[3]} in others: make it one type throughout"
                ) from None
            if "unexpected field" in str(error).lower():
                raise self._late_key(file) from None
            cause = (None if self._is_array[file] else self._bad_line(file)) or str(error).splitlines()[0]
            raise DataError(
                f"data.source='{self.uri}' does not read as json: '{file.name}': {cause}: write one object per "
                "line, or one array of objects"
            ) from error

    def _late_key(self, file: File) -> DataError:
        """Return the error for a key that the beginning of a file, which shows the keys, does not have."""
        known, where = set(self.schema.names), ""
        with self._open(file) as stream:
            for number, line in enumerate(io.TextIOWrapper(stream, "utf-8"), 1):
                late = set(json.loads(line)) - known if line.strip() else None
                if late:
                    where = f" '{min(late)}', first in line {number}"
                    break
        return DataError(
            f"data.source='{self.uri}': '{file.name}' has a key{where}, that its first {BLOCK_BYTES >> 20} MiB do not "
            "have: give it a value in the first line too, or leave it out"
        )

    def _is_one_object(self, file: File) -> bool:
        with self._open(file) as stream:
            rows = sum(batch.num_rows for batch in arrow_json.open_json(stream, _read_options()))
        return bool(rows == 1)

    def _bad_line(self, file: File) -> str | None:
        """Return what is wrong with the first line that is no JSON object."""
        with self._open(file) as stream:
            text = bytes(stream.read()).decode()
        for number, line in enumerate(text.splitlines(), 1):
            cause = _cause(line) if line.strip() else None
            if cause:
                shown = line.strip()
                return f"line {number} {cause}: {shown[:SHOWN] + ('...' if len(shown) > SHOWN else '')}"
        return None


def _cause(line: str) -> str | None:
    try:
        row = json.loads(line)
    except ValueError as error:
        if line.lstrip().startswith("{'"):
            return "has single quotes, as Python prints a dict (json.dumps writes JSON)"
        return f"is no JSON ({error})"
    return None if isinstance(row, dict) else f"is no object but a {type(row).__name__}"


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowInvalid:
        kinds = list(dict.fromkeys(type(value).__name__ for value in values if value is not None))
        if set(kinds) <= {"int", "float"}:
            return pa.array(values, pa.float64())
        raise ValueError(f"column '{name}' holds values of several types ({', '.join(kinds)})") from None


def _read_options() -> arrow_json.ReadOptions:
    return arrow_json.ReadOptions(block_size=BLOCK_BYTES)


def _parse_options(schema: pa.Schema) -> arrow_json.ParseOptions:
    return arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
