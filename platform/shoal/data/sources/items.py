"""The items of a map-style dataset become rows: tuples (features, label), or dicts of columns.

It knows items and what they draw at random; independent of how a dataset was found.
"""

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shoal.data.packing import is_ragged
from shoal.data.random_state import seed_random_states, seeded
from shoal.data.sampler import mix
from shoal.data.sources.base import Block
from shoal.data.sources.values import is_image, stack_values
from shoal.data.template import Template
from shoal.errors import DataError, UserError

DATA_SEED = 0  # of what a user's function draws: one for all runs, whose data do not depend on their seeds
COMPARED_ROWS = 8  # that are read several times before anything starts
SLOW_S = 0.1  # of one item: then fewer rows are compared
FEATURES, TARGET = "features", "target"


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

    @cached_property
    def parts(self) -> dict[str, Template]:
        """Which columns the named parts of an item are made of."""
        with seeded(DATA_SEED):
            return _parts(self.uri, 0, self._item(0, DATA_SEED))[0]

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


def nbytes_of_item(uri: str, row: int, item: Any) -> int:
    """Return about how many bytes an item takes."""
    values = _parts(uri, row, item)[1].values()
    return sum(int(value.nbytes) if hasattr(value, "nbytes") else sys.getsizeof(value) for value in values)


def is_table(parts: dict[str, Template], block: Block) -> bool:
    """Whether rows are records of single values, rather than arrays or trees that a model takes."""
    if not all(isinstance(part, str) for part in parts.values()):
        return False
    return all(
        (column.ndim == 1 and not is_ragged(column)) or (name == TARGET and column[:1].size == 1)
        for name, column in block.items()
    )


def have_draws(items: Items) -> bool:
    """Read a few rows several times; returns whether what they hold depends on the random generators.

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
    return first_difference(first, items.read(rows, DATA_SEED + 1)) is not None


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
        if is_ragged(column):
            pairs = zip(column, again, strict=True)
            differs = np.array([not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs])
        elif column.dtype == object:
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
    columns = [_parts(uri, row, item)[1] for row, item in zip(rows, items, strict=True)]
    first = columns[0]
    for row, column in zip(rows, columns, strict=True):
        if column.keys() != first.keys():
            odd = sorted(column.keys() ^ first.keys())[0]
            raise DataError(
                f"data.source='{uri}': '{odd}' is in one of the items {rows[0]} and {row}, not in the other: give "
                "every item the same keys and as many parts; stack or pad lists of arrays to one array"
            )
    return {name: _column(uri, rows, name, [column[name] for column in columns]) for name in first}


def _column(uri: str, rows: list[int], name: str, values: list[Any]) -> np.ndarray:
    where = f"data.source='{uri}': '{name}' of item"
    column = stack_values(where, rows, values, may_be_ragged=True)
    # Rows of uint16 are token ids, read as whole numbers; in more dimensions they are pixels.
    return column.astype(np.float32) if column.dtype == np.uint16 and column.ndim > 2 else column


def _parts(uri: str, row: int, item: Any) -> tuple[dict[str, Template], dict[str, Any]]:
    """Return which columns the named parts of an item are made of, and their values by column."""
    values: dict[str, Any] = {}
    if isinstance(item, tuple | list) and len(item) == 2:
        features, target = item
        if features is None:
            raise DataError(
                f"data.source='{uri}': the features of item {row} are None: leave such rows out of the dataset"
            )
        # Fields of the features are columns of their own names, unless one is called as the target is.
        path = FEATURES if TARGET in (_named(features) or {}) else ""
        return {FEATURES: _flatten(path, features, values), TARGET: _flatten(TARGET, target, values)}, values
    named = _named(item)
    if named is None:
        raise DataError(
            f"data.source='{uri}': item {row} is {_described(item)}: return a pair (features, label) or a dict of "
            f"named columns, e.g. {{'{FEATURES}': ..., '{TARGET}': ...}}"
        )
    return {name: _flatten(name, part, values) for name, part in named.items()}, values


def _flatten(path: str, value: Any, values: dict[str, Any]) -> Template:
    """Put the arrays of a tree into `values`, by their path; return where each is."""
    named = _named(value)
    if named is not None:
        return {name: _flatten(f"{path}.{name}".strip("."), part, values) for name, part in named.items()}
    path = path or FEATURES
    if _is_tree(value):
        return tuple(_flatten(f"{path}.{number}", part, values) for number, part in enumerate(value))
    if path in values:
        raise DataError(f"two parts of an item are both called '{path}': rename one of them")
    values[path] = value
    return path


def _named(value: Any) -> dict[str, Any] | None:
    """Return the parts of a dict, a dataclass or a named tuple; None: it is none."""
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    names = getattr(value, "__match_args__", ()) if isinstance(value, tuple) else ()  # a named tuple's
    return dict(zip(names, value, strict=True)) if names and len(names) == len(value) else None


def _is_tree(value: Any) -> bool:
    """Whether a tuple or list holds arrays, rather than being one of numbers, or of messages of a chat."""
    return isinstance(value, tuple | list) and any(
        _holds_no_text(_named(part)) or is_image(part) or (_has_shape(part) and len(part.shape) > 0)
        for part in value
    )


def _holds_no_text(named: dict[str, Any] | None) -> bool:
    return named is not None and not any(isinstance(part, str) for part in named.values())


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
