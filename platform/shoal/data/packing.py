"""Rows of several arrays packed into one row of bytes, and unpacked batch by batch as tensors of their own types.

What stores, partitions and streams rows knows one array of them. Arrays whose first dimension differs from row to row
are padded; how long each row is, is packed beside them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoal.errors import DataError

ALIGNMENT = 8  # bytes: where a view of any type can begin
IGNORED = -100  # torch's `ignore_index`: what targets of whole numbers are padded with
# Models compute in float32, and torch has few operations for the others.
STORED_AS = {"float64": "float32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}
KINDS = {"b": 0, "u": 1, "i": 1, "f": 2}  # a kind holds the values of those before it


class Field(NamedTuple):
    """One array of a packed row.

    Attributes:
        shape: of a row; where it is ragged, of the longest one.
        pad: what shorter rows are filled up with.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_ragged: bool = False
    pad: int = 0

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass
class Lengths:
    """How long the rows of an array of all splits are.

    Attributes:
        longest: the most entries of a row, that of number `longest_row`.
        differ: whether another row has fewer.
    """

    rows: int = 0
    total: int = 0
    longest: int = 0
    longest_row: int = 0
    differ: bool = False

    @classmethod
    def of(cls, column: np.ndarray) -> "Lengths":
        lengths = lengths_of(column)
        if not len(lengths):
            return cls()
        row = int(lengths.argmax())
        longest = int(lengths[row])
        return cls(len(lengths), int(lengths.sum()), longest, row, bool((lengths != longest).any()))

    def merge(self, other: "Lengths") -> "Lengths":
        if not (self.rows and other.rows):
            return self if self.rows else other
        longer = self.longest >= other.longest
        return Lengths(
            self.rows + other.rows,
            self.total + other.total,
            max(self.longest, other.longest),
            self.longest_row if longer else self.rows + other.longest_row,
            self.differ or other.differ or self.longest != other.longest,
        )


def is_ragged(column: np.ndarray) -> bool:
    """Whether a column is an array of arrays, whose first dimension differs from row to row."""
    return (
        column.dtype == object and column.ndim == 1 and len(column) > 0 and isinstance(column[0], np.ndarray)
    )


def as_ragged(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays as a column; those without entries take the type of the others."""
    dtype = np.result_type(*{array.dtype for array in arrays if len(array)} or {arrays[0].dtype})
    column = np.empty(len(arrays), dtype=object)
    for row, array in enumerate(arrays):
        column[row] = array.astype(dtype, copy=False)
    return column


def lengths_of(column: np.ndarray) -> np.ndarray:
    """Return how many entries each row has [n]."""
    if is_ragged(column):
        return np.fromiter((len(array) for array in column), np.int64, len(column))
    return np.full(len(column), column.shape[1] if column.ndim > 1 else 1, dtype=np.int64)


def nbytes_of(column: np.ndarray) -> int:
    return sum(array.nbytes for array in column) if is_ragged(column) else column.nbytes


class Packing:
    """Where the arrays are in a packed row [nbytes], uint8; a ragged one is behind its length, int64."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._starts: list[tuple[Field, int]] = []
        self.nbytes = 0
        for field in fields:
            self._starts.append((field, self.nbytes))
            nbytes = field.nbytes + ALIGNMENT * field.is_ragged
            self.nbytes += -(-nbytes // ALIGNMENT) * ALIGNMENT

    def pack(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return rows [n, nbytes].

        Args:
            block: each array [n, ...] by name; a ragged one as `is_ragged` says, or all rows equally long.

        Raises:
            DataError: an array has another shape or type than the row has place for.
        """
        count = len(block[self._starts[0][0].name])
        rows = np.zeros((count, self.nbytes), dtype=np.uint8)
        for field, start in self._starts:
            values = block[field.name]
            _check(field, values)
            if field.is_ragged:
                lengths = lengths_of(values)
                rows[:, start : start + ALIGNMENT] = lengths.view(np.uint8).reshape(count, ALIGNMENT)
                start += ALIGNMENT
                values = _padded(field, values)
            found = np.ascontiguousarray(values, dtype=field.dtype)
            rows[:, start : start + field.nbytes] = found.view(np.uint8).reshape(count, field.nbytes)
        return rows

    def blank(self, count: int) -> Tensor:
        """Return rows of zeros, each as long as the longest."""
        rows = torch.zeros((count, self.nbytes), dtype=torch.uint8)
        for field, start in self._starts:
            if field.is_ragged:
                rows[:, start : start + ALIGNMENT].view(torch.int64).fill_(field.shape[0])
        return rows

    def lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Return how many entries the first ragged array of each row has [n], int64; None: no array is ragged."""
        for field, start in self._starts:
            if field.is_ragged:
                return np.ascontiguousarray(rows[:, start : start + ALIGNMENT]).view(np.int64).reshape(-1)
        return None

    def unpack(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return tensors [n, ...] by name, and how many entries of each ragged one are no padding [n], int64."""
        found: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        for field, start in self._starts:
            if field.is_ragged:
                lengths[field.name] = rows[:, start : start + ALIGNMENT].view(torch.int64).reshape(-1)
                start += ALIGNMENT
            part = rows[:, start : start + field.nbytes].view(getattr(torch, field.dtype))
            found[field.name] = part.reshape(len(rows), *field.shape).contiguous()
        return found, lengths


def _check(field: Field, values: np.ndarray) -> None:
    """Refuse what a row has no place for.

    Raises:
        DataError: rows have another shape, or numbers of a wider kind.
    """
    shapes = {array.shape for array in values} if is_ragged(values) else {values.shape[1:]}
    known = field.shape[field.is_ragged :]
    odd = next(
        (shape for shape in shapes if shape[field.is_ragged :] != known or (not shape and known)), None
    )
    if odd is not None:
        trained = ("any number of entries", *known) if field.is_ragged else known
        raise DataError(f"column '{field.name}' has shape {odd} per row: the model was trained on {trained}")
    dtype = values[0].dtype if is_ragged(values) else values.dtype
    if KINDS.get(dtype.kind, 9) > KINDS[np.dtype(field.dtype).kind]:
        raise DataError(
            f"column '{field.name}' holds {dtype}, and the model was trained on {field.dtype}: convert it"
        )


def _padded(field: Field, values: np.ndarray) -> np.ndarray:
    rows = np.full((len(values), *field.shape), field.pad, dtype=field.dtype)
    if not is_ragged(values):
        rows[:, : values.shape[1]] = values
        return rows
    for row, value in enumerate(values):
        rows[row, : len(value)] = value
    return rows
