"""Arrays that a model takes as they are: the type and shape of all rows, and how long they are where that differs."""

from dataclasses import dataclass

import numpy as np

from shoal.data.packing import Lengths, is_ragged
from shoal.data.preprocessing import DEFAULTS, Column, ColumnOptions, Kind
from shoal.errors import DataError

PADDED_BYTES = 1 << 30  # that padding may take in any case
PADDED_TIMES = 4  # what the entries themselves take


@dataclass
class ArrayStats:
    """One column, over the rows of all splits, since the longest row may be in any; those of blocks can be merged.

    Attributes:
        shape: of a row; of the longest where they differ in their first dimension.
        dtype: None: no row has an entry.
    """

    shape: tuple[int, ...]
    dtype: str | None
    lengths: Lengths
    kind: Kind = "ready"

    @classmethod
    def of(cls, values: np.ndarray) -> "ArrayStats":
        lengths = Lengths.of(values)
        if not is_ragged(values):
            return cls(values.shape[1:], str(values.dtype) if values.size else None, lengths)
        dtype = str(values[0].dtype) if lengths.total else None
        return cls((lengths.longest, *values[0].shape[1:]), dtype, lengths)

    @staticmethod
    def describes(values: np.ndarray) -> bool:
        """Whether a column is of numbers, or of arrays of numbers."""
        return values.dtype.kind in "biuf" or is_ragged(values)

    def merge(self, other: "ArrayStats", name: str) -> "ArrayStats":
        """Return what both hold.

        Raises:
            DataError: their rows differ in more than their length.
        """
        if not (self.lengths.rows and other.lengths.rows):
            return self if self.lengths.rows else other
        if len(self.shape) != len(other.shape) or self.shape[1:] != other.shape[1:]:
            raise DataError(
                f"column '{name}' has shape {self.shape} per row in one part of the data and {other.shape} in another: "
                "rows may differ in their first dimension alone"
            )
        known = {dtype for dtype in (self.dtype, other.dtype) if dtype}
        dtype = str(np.result_type(*map(np.dtype, known))) if known else None
        shape = max(self.shape, other.shape)
        return ArrayStats(shape, dtype, self.lengths.merge(other.lengths))

    def fit(self, name: str, options: ColumnOptions = DEFAULTS) -> Column:
        """Return the column; what `options` say of columns of tables says nothing of arrays.

        Raises:
            DataError: padded to the longest row, it takes much more memory than its entries do.
        """
        shape = self.shape
        if self.lengths.differ:
            self._check_padding(name)
            shape = (max(1, shape[0]), *shape[1:])
        return Column(
            name=name, kind="ready", shape=shape, dtype=self.dtype or "float32", is_ragged=self.lengths.differ
        )

    def _check_padding(self, name: str) -> None:
        lengths = self.lengths
        entry = np.dtype(self.dtype or "float32").itemsize * int(np.prod(self.shape[1:]))
        padded, held = lengths.rows * lengths.longest * entry, lengths.total * entry
        if padded > max(PADDED_BYTES, PADDED_TIMES * held):
            raise DataError(
                f"column '{name}': row {lengths.longest_row} has {lengths.longest} entries, and the {lengths.rows} "
                f"rows have {lengths.total / lengths.rows:.0f} on average: padded to the longest they take "
                f"{padded / 1e9:.1f} GB instead of {held / 1e9:.1f} GB; cut long rows, e.g. x[:{_cut(lengths)}] in "
                "__getitem__, or leave them out"
            )


def _cut(lengths: Lengths) -> int:
    """Return a length at which padding takes less than `PADDED_TIMES` the entries."""
    return max(1, PADDED_TIMES * lengths.total // (2 * lengths.rows))


def longest_kept(lengths: np.ndarray, entry_bytes: int) -> int:
    """Return up to which length rows can be padded to the longest, where those that are longer are left out.

    Args:
        lengths: [n] entries of each row, n > 0.
    """
    lengths = np.sort(lengths)
    padded = np.arange(1, len(lengths) + 1) * lengths * entry_bytes
    held = np.cumsum(lengths) * entry_bytes
    return int(lengths[padded <= np.maximum(PADDED_BYTES, PADDED_TIMES * held)][-1])
