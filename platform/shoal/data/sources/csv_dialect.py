"""Tells how a CSV file is written, by a sample of it: encoding, delimiter, header and the names of the columns."""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

from shoal.data.read_options import ReadOptions
from shoal.data.sources.encoding import find_encoding
from shoal.data.sources.opening import UTF8, File, open_bytes, unclear_encoding
from shoal.errors import DataError

HEAD_BYTES = 1 << 20
WHOLE_BYTES = 4 << 20  # up to this size the sample is the whole file
SLICES, SLICE_BYTES = 6, 256 << 10  # further ones of a larger file
DELIMITERS = (
    "\t",
    ";",
    "|",
    ",",
)  # the first that divides all rows alike: text holds commas rather than tabs
SNIFFED_CHARACTERS = 256 << 10
SNIFFED_ROWS = 500
DECIMAL = re.compile(r"\s*[+-]?(\d+([.,]\d+)*|\.\d+)([eE][+-]?\d+)?\s*%?\s*")
YEARS = (1900, 2100)


@dataclass(frozen=True)
class Sample:
    """Some of a file's content: its beginning, and slices of whole lines from the rest where it is large."""

    slices: list[bytes]
    is_whole: bool


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        encoding: a name that Python knows.
        delimiter: between cells.
        header: whether the first row names the columns; None: the sample does not tell.
        names: of all columns of the file, unique.
        dropped: columns that are not read: row numbers and empty ones.
        spaces: whether spaces follow delimiters.
        spaces_before_quotes: whether they come before quotes as well.
        blank_lines: before the first row.
        notes: what is not the plain default.
    """

    encoding: str = UTF8
    delimiter: str = ","
    header: bool | None = None
    names: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()
    empty: frozenset[str] = frozenset()
    spaces: bool = False
    spaces_before_quotes: bool = False
    blank_lines: int = 0
    notes: tuple[str, ...] = ()
    is_divided: bool = field(default=True)


def take_sample(file: File) -> Sample:
    """Read a bounded sample of a file."""
    with open_bytes(file) as stream:
        size = stream.size() if file.is_plain else WHOLE_BYTES + 1
        if size <= WHOLE_BYTES:
            return Sample([bytes(stream.read())], True)
        if not file.is_plain:
            head = bytes(stream.read(WHOLE_BYTES + 1))
            return Sample([head[:WHOLE_BYTES]], len(head) <= WHOLE_BYTES)
        slices = [bytes(stream.read(HEAD_BYTES))]
        for number in range(1, SLICES + 1):
            stream.seek(HEAD_BYTES + (size - HEAD_BYTES - SLICE_BYTES) * number // SLICES)
            part = bytes(stream.read(SLICE_BYTES))
            slices.append(part[part.find(b"\n") + 1 :])
    return Sample(slices, False)


def decode_sample(file: File, sample: Sample, options: ReadOptions) -> tuple[list[str], str]:
    """Return the sample as text, whole lines of it, and the encoding.

    Raises:
        DataError: the encoding is not clear, or is not the given one.
    """
    encoding = options.encoding or find_encoding(sample.slices)
    if encoding is None:
        raise unclear_encoding(file)
    slices = sample.slices[:1] if encoding.startswith(("utf-16", "utf-32")) else sample.slices
    texts = []
    for part in slices:
        try:
            text = part.decode(encoding, errors="strict" if sample.is_whole else "ignore")
        except UnicodeDecodeError as error:
            line = part[: error.start].count(b"\n") + 1
            raise DataError(
                f"'{file.name}' is not {encoding} at byte {error.start} (line {line}): name its encoding, e.g. "
                f"data.encoding={'cp1252' if encoding == UTF8 else UTF8}, or leave data.encoding out"
            ) from None
        texts.append(text.removeprefix("\ufeff"))
    if not sample.is_whole:
        texts = [text[: text.rfind("\n") + 1] or text for text in texts]
    return texts, encoding


def sniff(file: File, text: str, encoding: str, options: ReadOptions) -> Dialect:
    """Tell the dialect by the beginning of a file.

    Raises:
        DataError: a given delimiter is not one character.
    """
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise DataError(
            f"data.delimiter={options.delimiter!r} has {len(options.delimiter)} characters: it must be one, e.g. ';'"
        )
    stripped = text.lstrip("\r\n")
    blank_lines = len(text[: len(text) - len(stripped)].replace("\r\n", "\n"))
    head = stripped[:SNIFFED_CHARACTERS]
    if len(stripped) > len(head):
        head = head[: head.rfind("\n") + 1] or head
    notes = (
        [f"its encoding is {encoding} (data.encoding)"] if encoding != UTF8 and not options.encoding else []
    )
    delimiter = options.delimiter or find_delimiter(head)
    if delimiter not in (None, ",") and not options.delimiter:
        shown = {"\t": "tabs", " ": "spaces"}.get(str(delimiter), f"'{delimiter}'")
        notes.append(f"cells are divided by {shown} (data.delimiter)")
    dialect = Dialect(encoding, delimiter or ",", blank_lines=blank_lines, is_divided=delimiter is not None)
    return complete(replace(dialect, notes=tuple(notes)), head, options)


def complete(dialect: Dialect, head: str, options: ReadOptions) -> Dialect:
    """Add what follows from the delimiter: spaces, the header and the names."""
    spaces = _spaces(head, dialect.delimiter)
    rows = parse(head, dialect.delimiter, any(spaces))
    header = options.header if options.header is not None else find_header(rows)
    dialect = replace(dialect, spaces=spaces[0], spaces_before_quotes=spaces[1], header=header)
    return name_columns(dialect, rows) if rows else dialect


def parse(text: str, delimiter: str, skips_spaces: bool = False) -> list[list[str]]:
    """Return the first rows of a text."""
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=skips_spaces)
    try:
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) == SNIFFED_ROWS:
                break
    except csv.Error:  # a cell above 128 KiB: Arrow will read it, or say why not
        pass
    return rows


def find_delimiter(head: str) -> str | None:
    """Return the character that divides all rows, the first one too, into equally many cells; None: there is none."""
    best: tuple[float, str | None] = (0.9, None)
    for delimiter in (*DELIMITERS, " "):
        if delimiter == " " and best[1] is not None:
            break
        if delimiter not in head:
            continue
        lengths = [len(row) for row in parse(head, delimiter)]
        body = lengths[1:] or lengths
        width, count = Counter(body).most_common(1)[0]
        # R writes a header without a name for the row names; some programs end all rows but it with a delimiter.
        starts = lengths[0] in (width, width - 1) and lengths[0] > 1
        share = count / len(body)
        if delimiter == " " and (width < 3 or share < 1 or len(lengths) < 2):
            continue
        if width > 1 and starts and share > best[0]:
            best = (share, delimiter)
    return best[1]


def _spaces(head: str, delimiter: str) -> tuple[bool, bool]:
    """Whether spaces follow most delimiters, and whether they precede quotes."""
    if delimiter == " ":
        return False, False
    cells = [cell for row in parse(head, delimiter) for cell in row[1:] if cell]
    follow = sum(cell.startswith(" ") for cell in cells) > 0.5 * len(cells)
    return follow, follow and f'{delimiter} "' in head


def is_number(cell: str) -> bool:
    return DECIMAL.fullmatch(cell) is not None


def find_header(rows: list[list[str]]) -> bool | None:
    """Whether the first row names the columns; None: it does not tell."""
    if len(rows) < 2:
        return None
    first, body = rows[0], rows[1:]
    width = Counter(map(len, body)).most_common(1)[0][0]
    if len(first) == width - 1:
        return True
    columns = [[row[at] for row in body if len(row) == width] for at in range(min(len(first), width))]
    numeric = [_is_numeric(column) for column in columns]
    if any(
        known and cell.strip() and not is_number(cell) and not _is_missing(cell)
        for cell, known in zip(first, numeric, strict=False)
    ):
        return True
    numbers = [cell for cell, known in zip(first, numeric, strict=False) if known and is_number(cell)]
    texts = [
        (cell, column) for cell, column, known in zip(first, columns, numeric, strict=False) if not known
    ]
    repeated = sum(cell in column for cell, column in texts)
    if numbers:
        if _count_up(numbers):
            return True
        return False if not texts or repeated or len(numbers) > 1 else None
    if texts and len(body) > 1:
        return repeated <= 0.5 * len(texts)
    return None


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in {"?", "-", "na", "n/a", "nan", "null", "none"}


def _is_numeric(column: list[str]) -> bool:
    known = [cell for cell in column if cell.strip() and not _is_missing(cell)]
    return len(known) > 0 and sum(map(is_number, known)) >= 0.9 * len(known)


def _count_up(cells: list[str]) -> bool:
    """Whether cells are numbers that name columns: years, or 0, 1, 2, ..."""
    if len(cells) < 2 or not all(cell.strip().isdigit() for cell in cells):
        return False
    numbers = list(map(int, cells))
    steps = {after - before for before, after in pairwise(numbers)}
    return steps == {1} or (
        all(YEARS[0] <= number <= YEARS[1] for number in numbers) and all(step > 0 for step in steps)
    )


def name_columns(dialect: Dialect, rows: list[list[str]]) -> Dialect:
    """Name all columns: from the header, made unique; `column_1`, ... where there is no name."""
    notes = list(dialect.notes)
    has_header = dialect.header is not False
    body = rows[1:] if has_header else rows
    width = Counter(map(len, body or rows)).most_common(1)[0][0]
    titles = [title.strip() for title in rows[0]] if has_header else [""] * width
    columns = [[row[at] for row in body if len(row) == width] for at in range(width)]
    if len(titles) == width - 1:
        is_ended = not any(cell.strip() for cell in columns[-1])
        titles = [*titles, ""] if is_ended else ["", *titles]
    if not has_header:
        notes.append(f"its first row is data, so columns are named column_1 to column_{width} (data.header)")
    dropped, empty, unnamed = set(), set(), []
    names: list[str] = []
    first_at: dict[str, int] = {}
    for at, title in enumerate(titles):
        name = title or f"column_{at + 1}"
        if not title and has_header:
            values = columns[at] if at < len(columns) else []
            if values and not any(cell.strip() for cell in values):
                empty.add(name)
            elif at == 0 and _is_row_number(values):
                dropped.add(name)
                notes.append("its first column has no name and numbers the rows: it is left out")
            else:
                unnamed.append(name)
        if title and first_at.setdefault(title, at) != at:
            name = next(
                new for copy in range(2, width + 2) if (new := f"{title}_{copy}") not in (*names, *titles)
            )
            notes.append(
                f"columns {first_at[title] + 1} and {at + 1} are both named '{title}': the later one is "
                f"'{name}' (data.columns={{{name}: drop}} leaves it out)"
            )
        names.append(name)
    if empty:
        notes.append(
            f"{len(empty)} columns without a name and without values are left out"
            if len(empty) > 1
            else "a column without a name and without values is left out"
        )
    if unnamed:
        notes.append(
            f"columns without a name are named {', '.join(unnamed)}"
            if len(unnamed) > 1
            else f"a column without a name is named {unnamed[0]}"
        )
    return replace(
        dialect, names=tuple(names), dropped=frozenset(dropped), empty=frozenset(empty), notes=tuple(notes)
    )


def _is_row_number(cells: list[str]) -> bool:
    """Whether a column without a name numbers the rows; those of a subset or a shuffled table have gaps."""
    return all(cell.strip().isdigit() for cell in cells) and len(set(cells)) == len(cells) > 1
