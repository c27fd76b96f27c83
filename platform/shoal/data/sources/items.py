"""The items of a map-style dataset become rows: tuples (features, label), or dicts of columns.

It knows items and what they draw at random; independent of how a dataset was found.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.data.random_state import seed_random_states, seeded
from shoal.data.sampler import mix
from shoal.data.sources.base import Block
from shoal.data.sources.values import stack_values
from shoal.errors import DataError, UserError

DATA_SEED = 0  # of what a user's function draws: one for all runs, whose data do not depend on their seeds
COMPARED_ROWS = 8  # that are read several times before anything starts
SLOW_S = 0.1  # of one item: then fewer rows are compared
FEATURES, TARGET = "features", "target"
DRAWS = "items draw random numbers: each row is drawn once, the same in every epoch and evaluation"


@dataclass(frozen=True)
class Items:
    """A map-style torch Dataset; what an item draws from random generators depends on its row alone."""

    uri: str
    dataset: Any

    def __len__(self) -> int:
        try:
            return len(self.dataset)
        except Exception as error:
            raise UserError(
                f"data.source='{self.uri}': __len__ raised {type(error).__name__}: {error}: return the number of items"
            ) from error

    def read(self, rows: Iterable[int], seed: int = DATA_SEED) -> Block:
        """Return some rows as a block.

        Raises:
            UserError: an item raised, or is not (features, label) or a dict; the message names its row.
        """
        numbers = list(rows)
        with seeded(seed):
            items = [self._item(row, seed) for row in numbers]
        return _to_block(self.uri, numbers, items)

    def sample(self) -> list[int]:
        """Return a few rows that are spread over all, fewer if an item takes long."""
        started = time.monotonic()
        self.read([0])
        count = COMPARED_ROWS if time.monotonic() - started < SLOW_S else 2
        return sorted({int(row) for row in np.linspace(0, len(self) - 1, count)})

    def _item(self, row: int, seed: int) -> Any:
        seed_random_states(int(mix(np.uint64(seed + row))) >> 1)
        try:
            return self.dataset[row]
        except Exception as error:
            raise UserError(
                f"data.source='{self.uri}': item {row} of {len(self)} raised {type(error).__name__}: {error}: fix "
                "__getitem__ or __len__ (SHOAL_TRACEBACK=1 shows where)"
            ) from error


def is_table(block: Block) -> bool:
    """Whether rows are records of single values, rather than arrays that a model takes."""
    return all(column.ndim == 1 for column in block.values())


def compare_reads(items: Items) -> tuple[str, ...]:
    """Read a few rows several times; returns a note if what they hold depends on the random generators.

    Raises:
        DataError: they differ although the generators begin at the same seeds.
    """
    rows = items.sample()
    first = items.read(rows)
    odd = first_difference(first, items.read(rows))
    if odd:
        raise DataError(
            f"data.source='{items.uri}': item {rows[odd[1]]} is another when it is read again ('{odd[0]}' differs), "
            "though torch, numpy.random and random begin at the same seed: draw from these, or from "
            "numpy.random.default_rng(index), and do not change what is stored"
        )
    return (DRAWS,) if first_difference(first, items.read(rows, DATA_SEED + 1)) else ()


def first_difference(one: Block, other: Block) -> tuple[str, int] | None:
    """Return (column, row) where two blocks differ first; None: nowhere."""
    if set(one) != set(other):
        return min(set(one) ^ set(other)), 0
    for name, column in one.items():
        again = other[name]
        if column.shape != again.shape or column.dtype.kind != again.dtype.kind:
            return name, min(len(column), len(again)) - 1 if len(column) != len(again) else 0
        if column.size == 0:
            continue
        if column.dtype == object:
            differs = np.array([str(a) != str(b) for a, b in zip(column, again, strict=True)])
        else:
            equal = column == again
            if column.dtype.kind in "fcmM":
                equal |= (column != column) & (again != again)
            differs = ~equal.reshape(len(column), -1).all(axis=1)
        if differs.any():
            return name, int(differs.argmax())
    return None


def _to_block(uri: str, rows: list[int], items: list[Any]) -> Block:
    """Stack items to columns."""
    columns = [_columns(uri, row, item) for row, item in zip(rows, items, strict=True)]
    first = columns[0]
    for row, column in zip(rows, columns, strict=True):
        if column.keys() != first.keys():
            odd = sorted(column.keys() ^ first.keys())[0]
            raise DataError(
                f"data.source='{uri}': '{odd}' is in one of the items {rows[0]} and {row}, not in the other: give "
                "every item the same keys"
            )
    return {name: _column(uri, rows, name, [column[name] for column in columns]) for name in first}


def _column(uri: str, rows: list[int], name: str, values: list[Any]) -> np.ndarray:
    where = f"data.source='{uri}': '{name}' of item"
    column = stack_values(where, rows, values)
    # Rows of uint16 are token ids, read as whole numbers; in more dimensions they are pixels.
    return column.astype(np.float32) if column.dtype == np.uint16 and column.ndim > 2 else column


def _columns(uri: str, row: int, item: Any) -> dict[str, Any]:
    """Name the parts of an item."""
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, tuple | list) and len(item) == 2:
        return {FEATURES: item[0], TARGET: _label(uri, row, *item)}
    names = getattr(item, "__match_args__", ()) if isinstance(item, tuple) else ()  # a named tuple's
    if names and len(names) == len(item):
        return dict(zip(names, item, strict=True))
    raise DataError(
        f"data.source='{uri}': item {row} is {_described(item)}: return a pair (features, label) or a dict of named "
        f"columns, e.g. {{'{FEATURES}': ..., '{TARGET}': ...}}"
    )


def _label(uri: str, row: int, features: Any, label: Any) -> Any:
    """Return the one label of a pair; other pairs are refused."""
    if features is None:
        raise DataError(
            f"data.source='{uri}': the features of item {row} are None: leave such rows out of the dataset"
        )
    if isinstance(features, Mapping) or (
        isinstance(features, tuple | list)
        and any(np.ndim(part) if _has_shape(part) else 0 for part in features)
    ):
        raise DataError(
            f"data.source='{uri}': the features of item {row} are {_described(features)}, and a model takes one array: "
            "join them, e.g. torch.cat or numpy.concatenate, in __getitem__"
        )
    shape = (
        tuple(label.shape)
        if _has_shape(label)
        else np.shape(label)
        if isinstance(label, list | tuple)
        else ()
    )
    if isinstance(label, Mapping) or np.prod(shape) != 1:
        raise DataError(
            f"data.source='{uri}': the label of item {row} is {_described(label)}: there must be one label per row; "
            "return one of them, the argmax of a one-hot vector, or a dataset for each label"
        )
    if isinstance(label, list | tuple):
        return label[0]
    return label.reshape(()) if shape and hasattr(label, "reshape") else label


def _has_shape(value: Any) -> bool:
    return hasattr(value, "shape") and not isinstance(value, type)


def _described(value: Any) -> str:
    """Say what a value is in a few words: its type, its parts and their shapes."""
    kind = type(value).__name__
    if value is None:
        return "None (does __getitem__ lack a return?)"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, list(value)[:5]))}"
    if isinstance(value, tuple | list):
        parts = ", ".join(_short(part) for part in value[:5])
        return f"a {kind} of {len(value)} ({parts}{', ...' if len(value) > 5 else ''})"
    return f"one {_short(value)}"


def _short(value: Any) -> str:
    return f"{type(value).__name__} {list(value.shape)}" if _has_shape(value) else type(value).__name__
