"""The types of CSV columns: learnt from samples, widened where a cell contradicts them.

A file is read with types that are fixed before, so that its parts can be read by themselves. Samples show nearly always
the right ones. Where a cell contradicts them, `widen` reads the cells of all files and finds what holds for every one.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from shoal.data.read_options import ReadOptions
from shoal.data.sources.csv_dialect import Dialect

TEXT = pa.string()
NULL_VALUES = arrow_csv.ConvertOptions().null_values
LEADING_ZERO = r"^\s*[+-]?0[0-9]"
COMMA = r"^\s*[+-]?(([0-9]+|[0-9]{1,3}(\.[0-9]{3})+)(,[0-9]*)?|,[0-9]+)([eE][+-]?[0-9]+)?\s*$"
GROUPS_BY_COMMA = r"^\s*[+-]?[1-9][0-9]{0,2},[0-9]{3}\s*$"  # 1,234 may be 1.234 or 1234
GROUPS_BY_POINT = r"^\s*[+-]?[1-9][0-9]{0,2}(\.[0-9]{3})+\s*$"
CODE = re.compile("[A-Z]{2}")
CODES = 3  # so many other codes of two letters make NA one of them
CODE_WIDTH = 3  # numbers of one width, at least this one, may be codes: zip codes, years
INFERRED_CELLS = 10_000


@dataclass(frozen=True)
class Layout:
    """How the columns of a source's CSV files are read.

    Attributes:
        types: by column, in order; what a column holds that no sample shows is `pa.null()`.
        empty: columns without a name and without values, left out as long as no cell contradicts.
        commas: number columns whose decimal mark is a comma.
        widths: of whole-number columns whose numbers all have so many digits in the samples; a shorter one may begin
            with a zero.
        codes: text columns in which NA is a value.
        zeros: columns of numbers that are text since some begin with a zero.
        nulls: texts that are missing values.
        is_exact: the types hold for every cell.
    """

    types: dict[str, pa.DataType] = field(default_factory=dict)
    empty: frozenset[str] = frozenset()
    commas: frozenset[str] = frozenset()
    widths: dict[str, int] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    zeros: frozenset[str] = frozenset()
    nulls: tuple[str, ...] = ()
    is_exact: bool = False

    @property
    def schema(self) -> pa.Schema:
        """The schema that files are read with."""
        read = {name: TEXT if name in self.commas else kind for name, kind in self.types.items()}
        return pa.schema(list(read.items()))

    @property
    def convert(self) -> arrow_csv.ConvertOptions:
        """How Arrow reads a file whose columns are in order of the layout; columns it lacks are missing."""
        return arrow_csv.ConvertOptions(
            column_types=self.schema,
            include_columns=list(self.types),
            include_missing_columns=True,
            null_values=list(self.nulls),
            strings_can_be_null=not self.codes,
        )


class ContradictionError(Exception):
    """A cell that is not of its column's type."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def null_values(options: ReadOptions, spaces: bool = False) -> tuple[str, ...]:
    """Return the texts that are missing values in a CSV file; an empty cell always is."""
    nulls = tuple(NULL_VALUES) if options.missing is None else ("", *options.missing)
    return (*nulls, *(f" {null}" for null in nulls)) if spaces else nulls


def parse_options(dialect: Dialect, skips_bad_rows: bool = False) -> arrow_csv.ParseOptions:
    return arrow_csv.ParseOptions(
        delimiter=dialect.delimiter,
        newlines_in_values=True,
        invalid_row_handler=(lambda _: "skip") if skips_bad_rows else None,
    )


def read_options(dialect: Dialect, block_bytes: int, is_first: bool = True) -> arrow_csv.ReadOptions:
    return arrow_csv.ReadOptions(
        column_names=list(dialect.names),
        block_size=block_bytes,
        skip_rows=dialect.skipped_lines if is_first else 0,
        skip_rows_after_names=int(dialect.header is not False and is_first),
    )


def learn(dialect: Dialect, texts: list[str], is_whole: bool, options: ReadOptions) -> Layout:
    """Learn the layout of one file from its sample."""
    layout = Layout(nulls=null_values(options, dialect.spaces), is_exact=is_whole)
    forced = dict(options.columns)
    names = [name for name in dialect.names if name not in dialect.dropped and forced.get(name) != "drop"]
    typed: dict[str, list[pa.DataType]] = {name: [] for name in names}
    cells: dict[str, list[pa.ChunkedArray]] = {name: [] for name in names}
    for number, text in enumerate(texts):
        for name, one, column in _read_slice(dialect, text, number == 0, is_whole, layout, names):
            typed[name].append(one)
            cells[name].append(column)
    types: dict[str, pa.DataType] = {}
    widths: dict[str, int] = {}
    commas: set[str] = set()
    unclear: set[str] = set()
    codes: set[str] = set()
    zeros: set[str] = set()
    for name in names:
        column = _joined(cells[name])
        kind = join(typed[name])
        if forced.get(name) in ("category", "text"):
            kind = TEXT
        elif is_number(kind) and forced.get(name) != "number" and matches_any(column, LEADING_ZERO):
            kind = TEXT
            zeros.add(name)
        elif (
            kind == TEXT
            and options.decimal != "."
            and matches_all(column, COMMA)
            and forced.get(name) != "date"
        ):
            is_clear = options.decimal == "," or not matches_all(column, GROUPS_BY_COMMA, where=",")
            (commas if is_clear else unclear).add(name)
        if pa.types.is_integer(kind) and forced.get(name) != "number":
            widths.update(_width(name, column))
        if kind == TEXT and _holds_codes(column):
            codes.add(name)
        types[name] = kind
    if commas:
        commas |= unclear | _with_points_between_groups(types, cells)
    types.update(dict.fromkeys(commas, pa.float64()))
    return replace(
        layout,
        types=types,
        empty=frozenset(name for name in dialect.empty if types.get(name) == pa.null()),
        commas=frozenset(commas),
        widths=widths,
        zeros=frozenset(zeros),
        codes=frozenset(codes - commas) if options.missing is None else frozenset(),
    )


def _with_points_between_groups(
    types: dict[str, pa.DataType], cells: dict[str, list[pa.ChunkedArray]]
) -> set[str]:
    """Return the number columns whose points all divide thousands, in a file whose decimal mark is a comma."""
    numbers = [name for name, kind in types.items() if kind == pa.float64()]
    return {name for name in numbers if matches_all(_joined(cells[name]), GROUPS_BY_POINT, where=".")}


def _joined(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=TEXT)


def _read_slice(
    dialect: Dialect, text: str, is_first: bool, is_whole: bool, layout: Layout, names: list[str]
) -> Iterable[tuple[str, pa.DataType, pa.ChunkedArray]]:
    """Yield for each column of a slice its type and its cells; nothing where the slice begins within quotes."""
    data = text.encode()
    if dialect.is_rewritten:
        data = dialect.rewritten(data)
    read = read_options(dialect, max(1 << 20, len(data) + 1), is_first)
    parse = parse_options(dialect, skips_bad_rows=True)
    nulls = {"null_values": list(layout.nulls), "strings_can_be_null": True, "include_columns": names}
    try:
        typed = arrow_csv.read_csv(io.BytesIO(data), read, parse, arrow_csv.ConvertOptions(**nulls))
        as_text = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, TEXT), **nulls)
        table = arrow_csv.read_csv(io.BytesIO(data), read, parse, as_text)
    except pa.ArrowInvalid:
        if is_whole:
            raise
        return
    for name in names:
        yield name, typed.schema.field(name).type, table.column(name)


def join(types: Iterable[pa.DataType]) -> pa.DataType:
    """Return the type that holds the cells of all types; text where there is no other."""
    found = {kind for kind in types if not pa.types.is_null(kind)}
    if len(found) < 2:
        return next(iter(found), pa.null())
    if all(map(is_number, found)):
        return pa.float64()
    times = [kind for kind in found if pa.types.is_timestamp(kind) or pa.types.is_date(kind)]
    zones = {kind.tz for kind in times if pa.types.is_timestamp(kind)}
    if len(times) == len(found) and len(zones) == 1:
        return pa.timestamp(
            "ns" if any(getattr(kind, "unit", "") == "ns" for kind in times) else "s", zones.pop()
        )
    return TEXT


def join_layouts(layouts: list[Layout]) -> Layout:
    """Return the layout that holds for all files."""
    names = list(dict.fromkeys(name for layout in layouts for name in layout.types))
    types, commas, widths = {}, set(), {}
    for name in names:
        having = [layout for layout in layouts if name in layout.types]
        kinds = [layout.types[name] for layout in having]
        with_comma = [name in layout.commas for layout in having]
        types[name] = join(kinds)
        if any(with_comma):
            # 1.5 in one file and 1,5 in another: no one mark reads both.
            points = any(
                not comma and kind == pa.float64() for comma, kind in zip(with_comma, kinds, strict=True)
            )
            types[name] = TEXT if points else types[name]
            if is_number(types[name]):
                commas.add(name)
        known = {layout.widths.get(name) for layout in having if layout.types[name] != pa.null()}
        if pa.types.is_integer(types[name]) and len(known) == 1 and (width := known.pop()):
            widths[name] = width
    return Layout(
        types,
        frozenset(name for layout in layouts for name in layout.empty if types[name] == pa.null()),
        frozenset(commas),
        widths,
        frozenset(name for layout in layouts for name in layout.codes if types[name] == TEXT),
        frozenset(name for layout in layouts for name in layout.zeros),
        tuple(dict.fromkeys(null for layout in layouts for null in layout.nulls)),
        all(layout.is_exact for layout in layouts),
    )


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def matches_any(column: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, pattern)).as_py())


def matches_all(column: pa.ChunkedArray, pattern: str, where: str = "") -> bool:
    """Whether all cells match that contain `where`; false if there is none."""
    known = column.drop_null()
    if where:
        known = known.filter(pc.match_substring(known, where))
    return len(known) > 0 and bool(pc.all(pc.match_substring_regex(known, pattern)).as_py())


def _width(name: str, column: pa.ChunkedArray) -> dict[str, int]:
    lengths = pc.min_max(pc.utf8_length(column)).as_py()
    width = lengths["min"] or 0
    return {name: width} if width >= CODE_WIDTH and width == lengths["max"] else {}


def _holds_codes(column: pa.ChunkedArray) -> bool:
    """Whether the values are codes of two letters, as of countries and continents, so that NA is one of them."""
    found = pc.unique(column.slice(0, INFERRED_CELLS).drop_null()).to_pylist()
    is_code = len(found) >= CODES and all(CODE.fullmatch(value.strip()) for value in found)
    return is_code and column.null_count <= 0.5 * len(column)


def finish(table: pa.Table, layout: Layout, dialect: Dialect) -> pa.Table:
    """Turn a table as Arrow reads it into the columns of the layout.

    Raises:
        ContradictionError: a cell is not of its column's type.
    """
    has_texts = dialect.spaces or layout.commas or layout.codes
    for at, name in enumerate(table.column_names if has_texts else ()):
        column = table.column(name)
        if column.type != TEXT:
            continue
        if dialect.spaces:
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(
                pc.is_in(column, pa.array(_nulls_of(name, layout))), pa.scalar(None, TEXT), column
            )
        elif layout.codes:
            column = pc.if_else(
                pc.is_in(column, pa.array(_nulls_of(name, layout))), pa.scalar(None, TEXT), column
            )
        if name in layout.commas:
            column = _with_comma(name, column)
        table = table.set_column(at, name, column)
    for name, width in layout.widths.items():
        bounds = pc.min_max(pc.abs(table.column(name)))
        if bounds["min"].is_valid and bounds["min"].as_py() < 10 ** (width - 1):
            raise ContradictionError(name)
    if dialect.has_empty_rows:
        table = _without_empty_rows(table)
    return table.drop_columns(list(layout.empty)) if layout.empty else table


def _without_empty_rows(table: pa.Table) -> pa.Table:
    if not all(column.null_count for column in table.columns):
        return table
    known = pa.array(np.zeros(len(table), dtype=bool))
    for column in table.columns:
        known = pc.or_(known, pc.is_valid(column.combine_chunks()))
    return table.filter(known)


def _nulls_of(name: str, layout: Layout) -> list[str]:
    return [""] if name in layout.codes else list(layout.nulls)


def _with_comma(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pc.all(pc.match_substring_regex(column, COMMA)).as_py() and column.null_count < len(column):
        raise ContradictionError(name)
    plain = pc.replace_substring(pc.utf8_trim_whitespace(column), ".", "")
    try:
        return pc.cast(pc.replace_substring(plain, ",", "."), pa.float64())
    except pa.ArrowInvalid:
        raise ContradictionError(name) from None


def widen(layout: Layout, texts: Iterable[pa.Table], options: ReadOptions) -> Layout:
    """Return the layout that holds for all cells of all files.

    Args:
        layout: that a cell contradicts.
        texts: the columns of `candidates`, as text, of all files, batch by batch.
        options: how files are read.
    """
    forced = dict(options.columns)
    types = {name: layout.types[name] for name in candidates(layout)}
    commas = set(layout.commas)
    for table in texts:
        for name in table.column_names:
            column = table.column(name)
            if types[name] == TEXT or column.null_count == len(column):
                continue
            if name in commas:
                if not matches_all(column, COMMA):
                    types[name] = TEXT
                    commas.discard(name)
                continue
            types[name] = _widened(types[name], column)
            if is_number(types[name]) and forced.get(name) != "number" and matches_any(column, LEADING_ZERO):
                types[name] = TEXT
    return replace(
        layout,
        types={name: types.get(name, kind) for name, kind in layout.types.items()},
        empty=frozenset(name for name in layout.empty if types[name] == pa.null()),
        commas=frozenset(commas),
        widths={},
        is_exact=True,
    )


def candidates(layout: Layout) -> list[str]:
    """Return the columns whose type a cell may contradict."""
    return [name for name, kind in layout.types.items() if kind != TEXT]


def _widened(kind: pa.DataType, column: pa.ChunkedArray) -> pa.DataType:
    if pa.types.is_null(kind):
        kind = _inferred(column)
    wider = {pa.int64(): [pa.float64()], pa.date32(): [pa.timestamp("s"), pa.timestamp("ns")]}
    wider[pa.timestamp("s")] = [pa.timestamp("ns")]
    trimmed: Any = pc.utf8_trim_whitespace(column) if is_number(kind) else column
    for one in (kind, *wider.get(kind, [])):
        try:
            pc.cast(trimmed, one)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        return one
    return TEXT


def _inferred(column: pa.ChunkedArray) -> pa.DataType:
    """Return the type that Arrow infers for cells."""
    cells = pc.unique(column).drop_null().slice(0, INFERRED_CELLS)
    data = io.BytesIO()
    arrow_csv.write_csv(pa.table({"x": cells}), data)
    return arrow_csv.read_csv(io.BytesIO(data.getvalue())).schema.field(0).type
