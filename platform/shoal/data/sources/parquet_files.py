"""Reads Parquet files: the whole of a small source at once, or row group by row group in tasks."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoal.data.read_options import ReadOptions
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import IN_DRIVER_BYTES, Block, Chunks, file_size, filesystem_of
from shoal.data.sources.opening import File, open_plain
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

BATCH_ROWS = 1 << 16  # of a large source read at a time
POINTER_BYTES = 8  # of a text or another object in an array


@dataclass
class ParquetReader:
    """The files of a source, whose columns have one type over all of them."""

    uri: str
    files: tuple[File, ...]
    options: ReadOptions
    constants: Constants
    notes: tuple[str, ...] = ()

    def whole(self, files: tuple[File, ...]) -> Iterator[Block]:
        """Read files in this process, all at once."""
        with self._explained(files):
            dataset = _dataset(files, self.schema)
            if any(self.constants.values()):
                each = zip(files, dataset.get_fragments(), strict=True)
                parts = [
                    with_constants(one.to_table(schema=self.schema), self.constants[file])
                    for file, one in each
                ]
                table = pa.concat_tables(parts)
            else:
                table = dataset.to_table()
        yield self._block(table, files)

    def chunks(self, files: tuple[File, ...]) -> Chunks:
        """Return the row groups, each of which any process can read."""
        with self._explained(files):
            fragments = _dataset(files, self.schema).get_fragments()
            groups = [
                (file, group)
                for file, one in zip(files, fragments, strict=True)
                for group in one.split_by_row_group()
            ]
        schema = self.schema

        def read(number: int) -> Iterator[Block]:
            file, group = groups[number]
            with self._explained((file,)):
                batches = group.to_batches(schema=schema, batch_size=BATCH_ROWS)
            while True:
                with self._explained((file,)):
                    batch = next(batches, None)
                if batch is None:
                    return
                if batch.num_rows:
                    table = with_constants(pa.Table.from_batches([batch]), self.constants.get(file))
                    yield self._block(table, (file,))

        return Chunks(len(groups), read)

    def _block(self, table: pa.Table, files: tuple[File, ...]) -> Block:
        table = with_kinds(flatten(table), self.options)
        found = null_list(table)
        if found:
            raise self._missing_list(found[0], files)
        return table_to_block(table)

    def _missing_list(self, column: str, files: tuple[File, ...]) -> DataError:
        """Return the error for the first missing list of a column: its row in the whole file."""
        for file in files:
            table = flatten(_dataset((file,), self.schema).to_table()).select([column])
            found = null_list(table)
            if found:
                return missing_list(column, found[1], file)
        raise AssertionError(column)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns and types of all files, without those that are dropped."""
        each = []
        for file in self.files:
            if not file.is_plain:
                raise DataError(
                    f"'{file.name}' is a Parquet file in an archive: unpack it, since such files are compressed within"
                )
            with self._explained((file,)):
                each.append(_dataset((file,), None).schema)
        schema = unified(each, self.files)
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice:
            raise DataError(
                f"data.source='{self.uri}' has several columns named '{twice}': rename all but one"
            )
        flat = flatten(schema.empty_table()).schema
        constants = list(next(iter(self.constants.values()), {}))
        check_names(self.uri, [*flat.names, *constants], self.options)
        check_types(flat, self.options, f"data.source='{self.uri}'")
        dropped = {name for name, kind in self.options.columns if kind == "drop"}
        return pa.schema([one for one in schema if one.name not in dropped])

    @contextlib.contextmanager
    def _explained(self, files: tuple[File, ...]) -> Iterator[None]:
        """Turn an error of reading into one that names the file, the cause and the remedy."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            file = files[0] if len(files) == 1 else _odd(files, self.schema)
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data.source='{self.uri}' does not read as parquet: '{file.name}': {reason}: fix the file, or name "
                "another scheme"
            ) from error


def _odd(files: tuple[File, ...], schema: pa.Schema) -> File:
    """Return the first file that does not read."""
    for file in files:
        try:
            _dataset((file,), schema).to_table()
        except (pa.ArrowException, OSError, ValueError):
            return file
    return files[0]


def unified(schemas: list[pa.Schema], files: tuple[File, ...]) -> pa.Schema:
    """Return the types that hold for all files.

    Raises:
        DataError: a column has types that no type joins.
    """
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        joined = schemas[0]
        for file, schema in zip(files, schemas, strict=True):
            try:
                joined = pa.unify_schemas([joined, schema], promote_options="permissive")
            except pa.ArrowException as error:
                odd = next(
                    (
                        one
                        for one in schema
                        if one.name in joined.names and not _joins(one, joined.field(one.name))
                    ),
                    None,
                )
                what = (
                    f"column '{odd.name}' is {odd.type} in '{file.name}' and {joined.field(odd.name).type} before it"
                    if odd
                    else f"'{file.name}': {error}"
                )
                raise DataError(f"{what}: make it one type throughout") from None
        return joined


def _joins(one: pa.Field, other: pa.Field) -> bool:
    try:
        pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _dataset(files: tuple[File, ...], schema: pa.Schema | None) -> Any:
    import pyarrow.dataset as arrow_dataset  # imported here: it imports pandas, which workers do not need

    filesystem, _ = filesystem_of(files[0].path)
    inner = [filesystem_of(file.path)[1] for file in files]
    return arrow_dataset.dataset(inner, format="parquet", filesystem=filesystem, schema=schema)


def rows_size(files: tuple[File, ...]) -> int:
    """Estimate the size of the rows in memory; not below that of the files, which alone tells above the limit."""
    total = sum(file_size(file.path) for file in files)
    if total > IN_DRIVER_BYTES:
        return total
    decoded = 0
    for file in files:
        try:
            with open_plain(file.path) as stream:
                metadata = pq.read_metadata(stream)
        except (pa.ArrowException, OSError):
            return total  # reading will say what is wrong
        decoded += sum(_group_size(metadata.row_group(number)) for number in range(metadata.num_row_groups))
    return max(total, decoded)


def _group_size(group: Any) -> int:
    size = 0
    for number in range(group.num_columns):
        column = group.column(number)
        width = {"INT32": 4, "FLOAT": 4, "BOOLEAN": 1}.get(column.physical_type, POINTER_BYTES)
        is_text = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        fixed = column.num_values * width
        size += (
            fixed + column.total_uncompressed_size if is_text else max(fixed, column.total_uncompressed_size)
        )
    return size
