"""Tells by the first rows of a CSV file whether the first of them names the columns."""

import re
from collections import Counter
from itertools import pairwise

DECIMAL = re.compile(r"\s*[+-]?(\d+([.,]\d+)*|\.\d+)([eE][+-]?\d+)?\s*%?\s*")
YEARS = (1900, 2100)


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


def names_columns(rows: list[list[str]]) -> bool:
    """Whether the first row is a header of texts."""
    return bool(find_header(rows)) and not any(map(is_number, rows[0]))


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
