"""Tells how a CSV file is written, by a sample of it: encoding, delimiter, header and the names of the columns."""

import contextlib
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field, replace

from shoal.data.read_options import ReadOptions
from shoal.data.sources.csv_header import find_header, names_columns
from shoal.data.sources.encoding import find_encoding
from shoal.data.sources.opening import UTF8, File, check_is_text, open_bytes, unclear_encoding
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
COMMENT = "#"
MOST_TITLES = 30  # lines before the header


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
        skipped_lines: before the first row: blank ones, comments and titles.
        is_divided_by_blanks: cells are divided by any number of blanks; `rewritten` makes each of these one tab.
        has_empty_rows: rows without any value, as spreadsheets append them, are left out.
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
    skipped_lines: int = 0
    is_divided_by_blanks: bool = False
    has_empty_rows: bool = False
    notes: tuple[str, ...] = ()
    is_divided: bool = field(default=True)

    @property
    def is_rewritten(self) -> bool:
        """Whether the file is no CSV as Arrow reads it."""
        return self.spaces_before_quotes or self.is_divided_by_blanks

    def rewritten(self, data: bytes) -> bytes:
        """Return whole lines as Arrow reads them: a tab for each run of blanks, or no blanks before quotes."""
        if self.is_divided_by_blanks:
            return divided_by_tabs(data)
        return without_spaces(data, self.delimiter.encode())


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
        DataError: it is no text, or its encoding is not clear, or is not the given one.
    """
    check_is_text(file, sample.slices[0])
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
    head = text[:SNIFFED_CHARACTERS]
    if len(text) > len(head):
        head = head[: head.rfind("\n") + 1] or head
    skipped = _comment_lines(head, options.delimiter)
    head = _from_line(head, skipped)
    is_blank = _is_divided_by_blanks(head, options.delimiter)
    delimiter: str | None
    if is_blank:
        head, delimiter, title_lines = divided_by_tabs(head.encode()).decode(), "\t", 0
    else:
        delimiter, title_lines = find_delimiter(head, options.delimiter)
        head = _from_line(head, title_lines)
    dialect = Dialect(
        encoding,
        delimiter or ",",
        skipped_lines=skipped + title_lines,
        is_divided_by_blanks=is_blank,
        has_empty_rows=_has_empty_rows(text, delimiter),
        is_divided=delimiter is not None,
    )
    notes = _notes(dialect, text, options)
    return complete(replace(dialect, notes=notes), head, options)


def _notes(dialect: Dialect, text: str, options: ReadOptions) -> tuple[str, ...]:
    notes = []
    if dialect.encoding != UTF8 and not options.encoding:
        notes.append(f"its encoding is {dialect.encoding} (data.encoding)")
    count = dialect.skipped_lines
    if any(line.strip() for line in text.split("\n", count)[:count]):
        notes.append(
            f"its first {count} lines are no rows: left out"
            if count > 1
            else "its first line is no row: left out"
        )
    if dialect.is_divided_by_blanks and options.delimiter != " ":
        notes.append("cells are divided by blanks (data.delimiter)")
    elif dialect.delimiter != "," and not options.delimiter:
        shown = {"\t": "tabs"}.get(dialect.delimiter, f"'{dialect.delimiter}'")
        notes.append(f"cells are divided by {shown} (data.delimiter)")
    if dialect.has_empty_rows:
        notes.append("rows without any value are left out")
    return tuple(notes)


def _from_line(text: str, line: int) -> str:
    """Return a text without its first lines."""
    return text.split("\n", line)[-1] if line else text


def _comment_lines(head: str, delimiter: str | None) -> int:
    """Return how many lines at the beginning are blank or comments; a header may begin with # as well."""
    lines = head.splitlines()
    count = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith(COMMENT)), 0)
    if not count or not lines[count - 1].startswith(COMMENT):
        return count
    body = "\n".join(lines[count : count + SNIFFED_ROWS])
    mark = delimiter or find_delimiter(body)[0]
    is_header = mark and len(parse(lines[count - 1], mark)[0]) == len(parse(body, mark)[0])
    return count - 1 if is_header else count


def _has_empty_rows(text: str, delimiter: str | None) -> bool:
    if not delimiter or delimiter == " ":
        return False
    mark = re.escape(delimiter)
    return re.search(rf'^[ "]*{mark}[ "{mark}]*\r?$', text, re.MULTILINE) is not None


def without_spaces(data: bytes, delimiter: bytes) -> bytes:
    """Remove spaces between a delimiter and a quote, which Arrow takes for a part of the cell."""
    return re.sub(re.escape(delimiter) + b' +"(?!")', delimiter + b'"', data)


def divided_by_tabs(data: bytes) -> bytes:
    """Return lines with a tab for each run of blanks, none at the ends of a line; those within quotes stay."""
    data = re.sub(rb"(?m)^[ \t]+|[ \t]+(?=\r?$)", b"", data)
    return re.sub(rb'("[^"\n]*")|[ \t]+', lambda found: found[1] or b"\t", data)


def _is_divided_by_blanks(head: str, given: str | None) -> bool:
    """Whether all rows have equally many cells between runs of blanks, and more than between other delimiters."""
    if given not in (None, " "):
        return False
    lines = [line for line in head.splitlines() if line.strip()][:SNIFFED_ROWS]
    text = divided_by_tabs("\n".join(lines).encode()).decode()
    lengths = [len(row) for row in parse(text, "\t")]
    if len(lengths) < 2 or len(set(lengths[1:])) > 1 or lengths[0] not in (lengths[1], lengths[1] - 1):
        return False
    if given or lengths[1] < 3:
        return bool(given)
    other = find_delimiter(head)[0]
    are_runs = sum("  " in line for line in lines) > 0.9 * len(lines)
    return other is None or (other == "\t" and are_runs and lengths[1] > len(parse(lines[1], "\t")[0]))


def complete(dialect: Dialect, head: str, options: ReadOptions) -> Dialect:
    """Add what follows from the delimiter: spaces, the header and the names."""
    spaces = _spaces(head, dialect.delimiter)
    rows = parse(head, dialect.delimiter, any(spaces))
    header = options.header if options.header is not None else find_header(rows)
    dialect = replace(dialect, spaces=spaces[0], spaces_before_quotes=spaces[1], header=header)
    return name_columns(dialect, rows) if rows else dialect


def parse(text: str, delimiter: str, skips_spaces: bool = False) -> list[list[str]]:
    """Return the first rows of a text."""
    return _parse(text, delimiter, skips_spaces)[0]


def _parse(text: str, delimiter: str, skips_spaces: bool = False) -> tuple[list[list[str]], list[int]]:
    """Return the first rows of a text, and how many lines precede each."""
    rows, begins, line = [], [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=skips_spaces)
    with contextlib.suppress(csv.Error):  # a cell above 128 KiB: Arrow will read it, or say why not
        for row in reader:
            if row:
                rows.append(row)
                begins.append(line)
            line = reader.line_num
            if len(rows) == SNIFFED_ROWS:
                break
    return rows, begins


def find_delimiter(head: str, given: str | None = None) -> tuple[str | None, int]:
    """Return the character that divides all rows into equally many cells, and how many lines of titles precede them.

    Titles have fewer cells than rows, and a header follows them. None: there is no such character.
    """
    best: tuple[float, str | None, int] = (0.9, given, 0)
    for delimiter in (given,) if given else DELIMITERS:
        if delimiter not in head:
            continue
        rows, begins = _parse(head, delimiter)
        lengths = list(map(len, rows))
        body = lengths[1:] or lengths
        width, _ = Counter(body).most_common(1)[0]
        # R writes a header without a name for the row names; some programs end all rows but it with a delimiter.
        starts = lengths[0] in (width, width - 1) and lengths[0] > 1
        first = 0 if starts else next((at for at, length in enumerate(lengths) if length == width), 0)
        body = lengths[first + 1 :] or lengths[first:]
        share = body.count(width) / len(body)
        are_titles = 0 < first <= MOST_TITLES and max(lengths[:first]) < width and names_columns(rows[first:])
        if width > 1 and (starts or are_titles) and share > best[0]:
            best = (share, delimiter, begins[first])
    return best[1:]


def _spaces(head: str, delimiter: str) -> tuple[bool, bool]:
    """Whether spaces follow most delimiters, and whether they precede quotes."""
    cells = [cell for row in parse(head, delimiter) for cell in row[1:] if cell]
    follow = sum(cell.startswith(" ") for cell in cells) > 0.5 * len(cells)
    return follow, follow and f'{delimiter} "' in head


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
