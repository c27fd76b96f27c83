"""What tables of all kinds of files have in common: nested values, partitions, given kinds of columns."""

from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from shoal.data.read_options import ReadOptions
from shoal.data.sources.opening import File
from shoal.errors import DataError, nearest

# By file, the columns that its path states: year=2020/part.csv.
Constants = dict[File, dict[str, pa.Scalar]]
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
CHAT = ({"role", "content"}, {"from", "value"})  # keys of a message


def partitions(files: list[File], root: str) -> Constants:
    """Return the columns that the folders below the root state, as Hive names them: NAME=VALUE."""
    found: dict[File, dict[str, str]] = {}
    for file in files:
        folders = file.name[len(root) :].split("/")[:-1] if file.name.startswith(root) else []
        pairs = [folder.partition("=") for folder in folders if "=" in folder.strip("=")]
        found[file] = {name: unquote(value) for name, _, value in pairs}
    names = dict.fromkeys(name for values in found.values() for name in values)
    types = {name: _type_of([values.get(name, NO_VALUE) for values in found.values()]) for name in names}
    return {
        file: {name: _scalar(values.get(name, NO_VALUE), types[name]) for name in names}
        for file, values in found.items()
    }


def _type_of(values: list[str]) -> pa.DataType:
    known = [value for value in values if value != NO_VALUE]
    is_whole = all(value.lstrip("-").isascii() and str(_as_int(value)) == value for value in known)
    return pa.int64() if known and is_whole else pa.string()


def _as_int(value: str) -> int | None:
    return int(value) if value.removeprefix("-").isdigit() else None


def _scalar(value: str, kind: pa.DataType) -> pa.Scalar:
    if value == NO_VALUE:
        return pa.scalar(None, kind)
    return pa.scalar(int(value) if kind == pa.int64() else value, kind)


def with_constants(table: pa.Table, values: dict[str, pa.Scalar] | None) -> pa.Table:
    """Add the columns that a file's path states, unless the file has them."""
    for name, value in (values or {}).items():
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(value, table.num_rows))
    return table


def check_names(uri: str, names: list[str], options: ReadOptions) -> None:
    """Refuse a given kind of a column that does not exist.

    Raises:
        DataError: as said.
    """
    for name, _ in options.columns:
        if name not in names:
            raise DataError(
                f"data.columns names '{name}', which is not a column of '{uri}'{nearest(name, names)}: its columns are "
                f"{', '.join(names[:20])}"
            )


def with_kinds(table: pa.Table, options: ReadOptions) -> pa.Table:
    """Leave out columns that are dropped, and turn those into text that the config says are text."""
    for name, kind in options.columns:
        if name not in table.column_names:
            continue
        column = table.column(name)
        if kind == "drop":
            table = table.drop_columns([name])
        elif kind in ("category", "text") and (
            pa.types.is_primitive(column.type) or pa.types.is_decimal(column.type)
        ):
            table = table.set_column(table.column_names.index(name), name, pc.cast(column, pa.string()))
    return table


def flatten(table: pa.Table) -> pa.Table:
    """Turn objects into dotted columns: {a: {b: 1}} is the column a.b.

    Raises:
        DataError: two columns come by one name.
    """
    while any(is_object(one.type) for one in table.schema):
        columns = []
        for one, column in zip(table.schema, table.columns, strict=True):
            if not is_object(one.type):
                columns.append((one.name, column))
                continue
            flat = pa.table({one.name: column}).flatten()
            columns += zip(flat.column_names, flat.columns, strict=True)
        names = [name for name, _ in columns]
        twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
        if twice:
            raise DataError(
                f"column '{twice}' is there twice, once as a key of an object: rename one of them"
            )
        table = pa.table([column for _, column in columns], names=names)
    return table


def is_object(kind: pa.DataType) -> bool:
    """Whether values are objects whose keys become columns; the encoded images of the Hub are not."""
    if not pa.types.is_struct(kind) or kind.num_fields == 0:
        return False
    return "bytes" not in [kind.field(number).name for number in range(kind.num_fields)]


def check_types(schema: pa.Schema, options: ReadOptions, where: str) -> None:
    """Refuse columns of which no features can be made.

    Raises:
        DataError: a column holds lists of texts or of objects, or maps.
    """
    dropped = {name for name, kind in options.columns if kind == "drop"}
    for one in schema:
        if one.name in dropped:
            continue
        problem = _problem(one.type)
        if problem:
            raise DataError(
                f"column '{one.name}' of {where} holds {problem} ({one.type}): make one column per value, or leave "
                f"it out with data.columns={{{one.name}: drop}}"
            )


def _problem(kind: pa.DataType) -> str | None:
    if pa.types.is_map(kind):
        return "maps"
    if not _is_list(kind):
        return None
    inner = kind.value_type
    while _is_list(inner):
        inner = inner.value_type
    if pa.types.is_struct(inner):
        keys = {inner.field(at).name for at in range(inner.num_fields)}
        return None if any(keys >= chat for chat in CHAT) else "lists of objects"
    if pa.types.is_map(inner):
        return "lists of maps"
    is_number = pa.types.is_primitive(inner) or pa.types.is_decimal(inner) or pa.types.is_null(inner)
    return None if is_number else "lists of texts"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def null_list(table: pa.Table) -> tuple[str, int] | None:
    """Return the column and the row, from 0, of a missing list; None: there is none."""
    for one, column in zip(table.schema, table.columns, strict=True):
        if _is_list(one.type) and column.null_count and not pa.types.is_struct(one.type.value_type):
            return one.name, pc.index(pc.is_null(column), True).as_py()
    return None


def missing_list(column: str, row: int, file: File) -> DataError:
    return DataError(
        f"column '{column}' has no list in row {row + 1} of '{file.name}': every row needs one of the same length; "
        f"fill or drop this row, or leave the column out with data.columns={{{column}: drop}}"
    )
