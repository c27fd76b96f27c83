"""Reads CSV files: the whole of a small source, or file by file in tasks, with the same types."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv

from shoal.data.read_options import ReadOptions
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import Block, Chunks, OtherTypesError
from shoal.data.sources.csv_dialect import Dialect, decode_sample, sniff, take_sample
from shoal.data.sources.csv_types import (
    TEXT,
    ContradictionError,
    Layout,
    candidates,
    finish,
    join_layouts,
    learn,
    parse_options,
    read_options,
    widen,
)
from shoal.data.sources.opening import File, open_text, undecodable
from shoal.data.sources.tables import Constants, check_names, with_constants
from shoal.errors import DataError

BLOCK_BYTES = 16 << 20  # parsed at a time by a thread
REWRITTEN_BYTES = 1 << 20
BATCH_BYTES = 8 << 20  # of a large source, of which each makes a block of rows
COLUMN = re.compile(r"In CSV column #(\d+): ")


@dataclass
class CsvReader:
    """The files of a source, whose columns have one layout over all of them."""

    uri: str
    dialects: dict[File, Dialect]
    layout: Layout
    options: ReadOptions
    constants: Constants
    notes: tuple[str, ...] = ()
    is_begun: bool = False  # blocks were read since the types were learnt
    _tables: dict[File, pa.Table] = field(default_factory=dict, repr=False)

    def whole(self, files: tuple[File, ...]) -> Iterator[Block]:
        """Read files in this process, all at once."""
        chosen = [file for file in files if file in self.dialects]
        if not all(file in self._tables for file in chosen):
            self._read_all()
        yield table_to_block(pa.concat_tables([self._tables.pop(file) for file in chosen]))

    def _read_all(self) -> None:
        """Read all files, since a cell of any may change the types of all; those of other splits are kept for later."""
        while True:
            try:
                for file, dialect in self.dialects.items():
                    self._tables[file] = read_file(self.uri, file, dialect, self.layout, self.constants)
                return
            except OtherTypesError as error:
                self.relearn(error)

    def chunks(self, files: tuple[File, ...]) -> Chunks:
        """Return the files, each of which any process can read."""
        uri, layout, constants = self.uri, self.layout, self.constants
        chosen = [(file, self.dialects[file]) for file in files if file in self.dialects]

        def read(number: int) -> Iterator[Block]:
            for table in read_batches(uri, *chosen[number], layout, constants):
                yield table_to_block(table)

        return Chunks(len(chosen), read)

    def relearn(self, error: OtherTypesError) -> None:
        """Find the types that hold for every cell; text for a column that they do not hold for."""
        before = self.layout
        if not before.is_exact:
            self.layout = widen(before, self._texts(candidates(before)), self.options)
        if self.layout.types[error.column] == before.types[error.column] and before.is_exact:
            self.layout = replace(
                before,
                types=before.types | {error.column: TEXT},
                widths={name: width for name, width in before.widths.items() if name != error.column},
                commas=before.commas - {error.column},
                empty=before.empty - {error.column},
            )

    def _texts(self, columns: list[str]) -> Iterator[pa.Table]:
        for file, dialect in self.dialects.items():
            names = [name for name in columns if name in dialect.names]
            layout = Layout(dict.fromkeys(names, TEXT), nulls=self.layout.nulls)
            if names:
                yield from read_batches(self.uri, file, dialect, layout, {})


def open_csv(uri: str, files: tuple[File, ...], options: ReadOptions, constants: Constants) -> CsvReader:
    """Learn how the files of a source are written, from samples.

    Raises:
        DataError: a file is written in another way than the others, or a given column does not exist.
    """
    sniffed: dict[File, tuple[Dialect, list[str], bool]] = {}
    for file in files:
        sample = take_sample(file)
        if not sample.slices[0].strip():
            continue
        texts, encoding = decode_sample(file, sample, options)
        sniffed[file] = (sniff(file, texts[0], encoding, options), texts, sample.is_whole)
    if not sniffed:
        raise DataError(f"data.source='{uri}' holds no rows: give a file with rows")
    dialects = _agreed({file: (dialect, texts[0]) for file, (dialect, texts, _) in sniffed.items()}, options)
    layouts = []
    for file, (_, texts, is_whole) in sniffed.items():
        with explained(uri, file, dialects[file]):
            layouts.append(learn(dialects[file], texts, is_whole, options))
    layout = join_layouts(layouts)
    known = [
        *dict.fromkeys(name for dialect in dialects.values() for name in dialect.names),
        *_names(constants),
    ]
    check_names(uri, known, options)
    return CsvReader(uri, dialects, layout, options, constants, _notes(dialects, layout, layouts, options))


def _names(constants: Constants) -> list[str]:
    return list(next(iter(constants.values()), {}))


def _agreed(sniffed: dict[File, tuple[Dialect, str]], options: ReadOptions) -> dict[File, Dialect]:
    """Return the dialects; a file that does not tell is taken to be written as the others.

    Raises:
        DataError: a file is written in another way.
    """
    every = {file: dialect for file, (dialect, _) in sniffed.items()}
    divided = next(((file, dialect) for file, dialect in every.items() if dialect.is_divided), None)
    titled = next(((file, dialect) for file, dialect in every.items() if dialect.header is not None), None)
    for file, dialect in every.items():
        given: dict[str, Any] = {}
        if divided and not dialect.is_divided:
            given["delimiter"] = divided[1].delimiter
        elif divided and dialect.delimiter != divided[1].delimiter:
            raise DataError(
                f"the cells of '{file.name}' are divided by {dialect.delimiter!r}, those of '{divided[0].name}' by "
                f"{divided[1].delimiter!r}: write both alike, or name one of them as data.source"
            )
        if titled and dialect.header is None:
            given["header"] = titled[1].header
        elif titled and dialect.header != titled[1].header:
            odd, other = (file, titled[0]) if not dialect.header else (titled[0], file)
            raise DataError(
                f"the first row of '{odd.name}' looks like data, that of '{other.name}' names columns: set "
                "data.header=true if both name columns, else false, or add the names"
            )
        if given:
            every[file] = sniff(file, sniffed[file][1], dialect.encoding, replace(options, **given))
    return every


def _notes(
    dialects: dict[File, Dialect], layout: Layout, layouts: list[Layout], options: ReadOptions
) -> tuple[str, ...]:
    """Return a line for each thing that is not the plain default, with the first file that has it."""
    found: dict[str, list[File]] = {}
    for file, dialect in dialects.items():
        for note in dialect.notes:
            found.setdefault(note, []).append(file)
    lines = [f"{_named(files)}: {note}" for note, files in found.items()]
    files = list(dialects)
    if layout.commas and options.decimal is None:
        lines.append(
            f"{_named(files)}: ',' is the decimal mark in {_listed(sorted(layout.commas))} (data.decimal)"
        )
    lines += [
        f"{_named(files)}: NA is a value of column '{name}', a code as its others (data.missing=[NA])"
        for name in sorted(layout.codes)
    ]
    kinds = dict(options.columns)
    zeros = [
        name for name in layout.types if any(name in each.zeros for each in layouts) and name not in kinds
    ]
    if zeros:
        lines.append(
            f"{_named(files)}: {_listed(zeros)} is text, since numbers in it begin with 0 "
            f"(data.columns={{{zeros[0]}: number}})"
        )
    return tuple(lines)


def _named(files: list[File]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"'{files[0].name}'{more}"


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:5]) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )


def read_file(uri: str, file: File, dialect: Dialect, layout: Layout, constants: Constants) -> pa.Table:
    """Read a file as a whole.

    Raises:
        OtherTypesError: a cell is not of its column's type.
        DataError: it does not read.
    """
    with explained(uri, file, dialect), _open(file, dialect) as stream:
        table = arrow_csv.read_csv(
            stream, read_options(dialect, BLOCK_BYTES), parse_options(dialect), layout.convert
        )
        return with_constants(finish(table, layout, dialect), constants.get(file))


def read_batches(
    uri: str, file: File, dialect: Dialect, layout: Layout, constants: Constants
) -> Iterator[pa.Table]:
    """Read a file a part at a time.

    Raises:
        OtherTypesError, DataError: as `read_file`.
    """
    with explained(uri, file, dialect), _open(file, dialect) as stream:
        reader = arrow_csv.open_csv(
            stream, read_options(dialect, BATCH_BYTES), parse_options(dialect), layout.convert
        )
        for batch in reader:
            if batch.num_rows:
                table = pa.Table.from_batches([batch])
                yield with_constants(finish(table, layout, dialect), constants.get(file))


@contextlib.contextmanager
def _open(file: File, dialect: Dialect) -> Iterator[Any]:
    with open_text(file, dialect.encoding) as stream:
        if not dialect.is_rewritten:
            yield stream
            return
        yield pa.PythonFile(_Rewritten(stream, dialect), mode="r")


@dataclass
class _Rewritten:
    """A stream of whole lines at a time, as Arrow reads them."""

    stream: Any
    dialect: Dialect
    closed: bool = False
    _rest: bytes = field(default=b"", repr=False)
    _cut: bytes = field(default=b"", repr=False)  # the beginning of a line

    def read(self, count: int = -1) -> bytes:
        while count < 0 or len(self._rest) < count:
            chunk = bytes(self.stream.read(REWRITTEN_BYTES))
            lines, newline, cut = (self._cut + chunk).rpartition(b"\n")
            if not chunk:
                lines, newline, cut = self._cut, b"", b""
            self._cut = cut
            self._rest += self.dialect.rewritten(lines + newline)
            if not chunk:
                break
        taken = self._rest if count < 0 else self._rest[:count]
        self._rest = self._rest[len(taken) :]
        return taken

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


@contextlib.contextmanager
def explained(uri: str, file: File, dialect: Dialect) -> Iterator[None]:
    """Turn an error of reading into one that names the file, the cause and the remedy."""
    try:
        yield
    except ContradictionError as error:
        raise OtherTypesError(uri, file.name, error.column) from None
    except (pa.ArrowException, UnicodeError, OSError) as error:
        text = str(error).splitlines()[0]
        at = COLUMN.search(text)
        if isinstance(error, UnicodeError) or "invalid UTF8" in text:
            raise undecodable(file, dialect.encoding) or _unreadable(uri, file, text) from None
        if at and "conversion error" in text:
            raise OtherTypesError(uri, file.name, dialect.names[int(at[1])]) from None
        raise _unreadable(uri, file, _cause(file, dialect, text)) from error


def _cause(file: File, dialect: Dialect, text: str) -> str:
    """Return what is wrong with a row, and which it is."""
    if "straddling" in text:
        return "no row of it ends: it holds no rows, or a quote is opened and not closed"
    if "Expected" not in text:
        return text
    options = read_options(dialect, BATCH_BYTES)
    options.use_threads = False  # only then does Arrow count rows
    try:
        with _open(file, dialect) as stream:
            arrow_csv.read_csv(stream, options, parse_options(dialect))
    except pa.ArrowException as error:
        text = str(error).splitlines()[0]
    found = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): ?(.*)", text)
    if not found:
        return text
    row = f"row {found[1]}" if found[1] else "a row"
    return f"{row} has {found[3]} cells where {found[2]} are expected: {found[4][:80]!r}"


def _unreadable(uri: str, file: File, cause: str) -> DataError:
    return DataError(
        f"data.source='{uri}' does not read as csv: '{file.name}': {cause}: fix the file, or say how it is written "
        f"(data.delimiter, data.encoding, data.header)"
    )
