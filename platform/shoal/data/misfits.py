"""Cells that a fitted transform cannot use, counted over blocks: other data than in training, or written otherwise."""

from dataclasses import dataclass, field

import numpy as np

from shoal.data.preprocessing import Column, Transform
from shoal.data.sources.base import Block
from shoal.errors import DataError

REFUSED_SHARE = 0.5  # of a column's cells
LEAST_CELLS = 20  # that are judged


@dataclass
class _Count:
    rows: int = 0
    misfits: int = 0
    odd: str = ""


@dataclass
class Misfits:
    """What was found in the blocks so far."""

    transform: Transform
    _counts: dict[str, _Count] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Count the cells of a block; columns that it does not have are another complaint."""
        for column in self.transform.columns:
            values = block.get(column.name)
            if values is None or column.kind not in ("number", "category"):
                continue
            found = np.flatnonzero(column.misfits(values))
            count = self._counts.setdefault(column.name, _Count())
            count.rows += len(values)
            count.misfits += len(found)
            if len(found) and not count.odd:
                count.odd = str(values[found[0]])

    def check(self) -> None:
        """Refuse data of which a column is mostly of no use.

        Raises:
            DataError: with the share and an example.
        """
        for column in self.transform.columns:
            count = self._counts.get(column.name)
            if count and count.rows >= LEAST_CELLS and count.misfits > REFUSED_SHARE * count.rows:
                raise DataError(f"{_line(column, count)}: {_remedy(column)}")

    def lines(self) -> list[str]:
        """Return a line for each column with such cells."""
        by_name = {column.name: column for column in self.transform.columns}
        return [
            f"{_line(by_name[name], count)}: they count as {_counts_as(by_name[name])}"
            for name, count in self._counts.items()
            if count.misfits
        ]


def _line(column: Column, count: _Count) -> str:
    share = (
        f"{count.misfits} of {count.rows} cells ({count.misfits / count.rows:.0%}) of column '{column.name}'"
    )
    if column.kind == "category":
        return f"{share} are none of the {len(column.categories)} values of training (e.g. '{count.odd}')"
    read = f"read as {column.reading}" if column.reading else "read as a number"
    return f"{share} cannot be {read} (e.g. '{count.odd}')"


def _counts_as(column: Column) -> str:
    return "other values" if column.kind == "category" else "missing"


def _remedy(column: Column) -> str:
    if column.kind == "category":
        return "name data with the values that the model was trained on, or train with these"
    return "write the numbers as in training, e.g. with the same decimal mark"
