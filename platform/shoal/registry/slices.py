"""Groups of rows by their raw values: a group for each of few values of a column, or for each quarter of its numbers.

It depends on how columns were read; it does not know what is measured on the rows.
"""

from itertools import pairwise

import numpy as np

from shoal.data.preprocessing import Column, Transform
from shoal.data.sources.base import Block
from shoal.data.values import as_numbers, as_texts, is_missing, read_cells
from shoal.registry.compare import DividedColumn

MOST_COLUMNS = 100  # of a table that are looked at
MOST_VALUES = 20  # of a column whose values each make a group
FEW_NUMBERS = 10  # different ones that are values, not quantities
QUARTILES = (0.25, 0.5, 0.75)
MISSING = "missing"


class SliceColumns:
    """Collects the columns of a transform that may divide rows, numbers and categories, and the classes."""

    def __init__(self, transform: Transform) -> None:
        columns = [column for column in transform.columns if column.kind in ("number", "category")]
        self._columns = {column.name: column for column in columns[:MOST_COLUMNS]}
        self._label = transform.label.name if transform.label.classes else None
        self._values: dict[str, list[np.ndarray]] = {}

    def add(self, block: Block) -> None:
        """Add rows as they are read."""
        for name in (*self._columns, self._label):
            if name in block:
                self._values.setdefault(name, []).append(_values(self._columns.get(name), block[name]))

    def divided(self) -> list[DividedColumn]:
        """Return the columns that make at least two groups of all rows added."""
        found = []
        for name, parts in self._values.items():
            values, column = np.concatenate(parts), self._columns.get(name)
            is_number = column is not None and column.kind == "number"
            divided = _by_number(name, values, column) if is_number else _by_value(name, values)
            if divided is not None and len(divided.labels) > 1:
                found.append(divided)
        return found


def _values(column: Column | None, values: np.ndarray) -> np.ndarray:
    """Return numbers as float64 and others as texts."""
    if column is None or column.kind != "number":
        return as_texts(values)
    if column.reading is not None and values.dtype == object:
        return read_cells(values, column.reading)
    return as_numbers(values)


def _by_value(name: str, values: np.ndarray) -> DividedColumn | None:
    """Return a group for each value; None where there are too many of them."""
    texts = np.where(is_missing(values), MISSING, values).astype(str)
    labels, codes = np.unique(texts, return_inverse=True)
    return DividedColumn(name, labels.tolist(), codes) if len(labels) <= MOST_VALUES else None


def _by_number(name: str, values: np.ndarray, column: Column | None) -> DividedColumn | None:
    """Return a group for each of few numbers, else for each quarter of them; those that are missing are another."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    is_date = column is not None and column.is_date
    distinct = np.unique(known)
    if len(distinct) <= FEW_NUMBERS:
        labels, codes = [_text(value, is_date) for value in distinct], np.searchsorted(distinct, values)
    else:
        edges = np.unique(np.quantile(known, QUARTILES))
        ends = [_text(edge, is_date) for edge in edges]
        between = [f"{low} to {high}" for low, high in pairwise(ends)]
        labels = [f"at most {ends[0]}", *between, f"more than {ends[-1]}"]
        codes = np.searchsorted(edges, values, side="left")
    is_unknown = np.isnan(values)
    if is_unknown.any():
        labels, codes = [*labels, MISSING], np.where(is_unknown, len(labels), codes)
    return DividedColumn(name, labels, codes)


def _text(number: float, is_date: bool) -> str:
    if is_date:
        return str(np.datetime64(round(number), "s"))
    return f"{number:.6g}"
