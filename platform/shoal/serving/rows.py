"""Values of a request become columns that the model takes; one that does not fit is refused with its row and column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from shoal.data.packing import as_ragged
from shoal.data.preprocessing import Column
from shoal.data.sources.base import Block
from shoal.errors import nearest
from shoal.serving.errors import invalid, malformed
from shoal.serving.signature import Field, Signature

LARGEST = float(np.finfo(np.float32).max)
PLAIN = {float, int, type(None)}
TEXTS = {str, float, int, bool, type(None)}
SHOWN = 40  # characters of a value in a message

Columns = Mapping[str, Any]  # name: a list or an array with a value for each row


@dataclass(frozen=True)
class Rows:
    """Rows of a request.

    Attributes:
        columns: those that the model takes.
        ignored: names of other columns of the request.
    """

    columns: Block
    count: int
    ignored: tuple[str, ...] = ()


def check_rows(given: Columns, signature: Signature, most: int) -> Rows:
    """Check columns of a request against the signature.

    Args:
        most: rows.

    Raises:
        RequestError: 422 with row and column where a value does not fit; 413 for too many rows.
    """
    for name in signature.by_name:
        if name not in given:
            raise invalid(
                f"column '{name}' is missing{nearest(name, given)}: the model takes {_list(signature.by_name)}",
                column=name,
            )
    counts = {name: _length(name, given[name]) for name in signature.by_name}
    count = max(counts.values())
    for name, length in counts.items():
        if length != count:
            raise invalid(f"column '{name}' has {length} values, and another one {count}", length, name)
    if count == 0:
        raise invalid("there are no rows: send at least one")
    if count > most:
        error = invalid(f"{count} rows in one request: send at most {most} at a time (serve.max_rows)")
        error.status = 413
        raise error
    columns = {name: _checked(field, given[name]) for name, field in signature.by_name.items()}
    return Rows(columns, count, tuple(name for name in given if name not in columns))


def columns_of_records(records: Sequence[Any], signature: Signature) -> Columns:
    """Return columns of rows that are objects.

    Raises:
        RequestError: a row is no object, or lacks a column.
    """
    for row, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise malformed(f"row {row} is {shown(record)}: each row is an object {{column: value}}")
    first = records[0] if records else {}
    names = [*signature.by_name, *(name for name in first if name not in signature.by_name)]
    found: dict[str, list[Any]] = {}
    for name in names:
        if name not in signature.by_name:
            found[name] = []  # it is mentioned, and not read
            continue
        try:
            found[name] = [record[name] for record in records]
        except KeyError:
            row = next(row for row, record in enumerate(records) if name not in record)
            raise invalid(
                f"row {row}: column '{name}' is missing{nearest(name, records[row])}: the model takes "
                f"{_list(signature.by_name)}",
                row,
                name,
            ) from None
    return found


def shown(value: Any) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _length(name: str, values: Any) -> int:
    if not isinstance(values, list | tuple | np.ndarray):
        raise invalid(
            f"column '{name}' is {shown(values)}: a column is a list with a value for each row", column=name
        )
    return len(values)


def _checked(field: Field, values: Any) -> np.ndarray:
    if field.kind == "array":
        return _arrays(field, values)
    if isinstance(values, np.ndarray):
        values = (
            values.reshape(len(values), -1)[:, 0].tolist() if values.size == len(values) else values.tolist()
        )
    if field.column is None:
        return _texts(field, values, {str})
    if field.kind in ("category", "text"):
        return _texts(field, values, TEXTS)
    return _numbers(field, field.column, values)


def _texts(field: Field, values: Sequence[Any], allowed: set[type]) -> np.ndarray:
    if not set(map(type, values)) <= allowed:
        _refuse(field, values, lambda value: type(value) in allowed, "a text")
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _numbers(field: Field, column: Column, values: Sequence[Any]) -> np.ndarray:
    if column.dtype.startswith("datetime"):
        return _dates(field, values)
    kinds = set(map(type, values))
    if bool in kinds and column.dtype == "bool":
        kinds.discard(bool)
    if not kinds <= PLAIN:
        if not field.takes_text or not kinds <= PLAIN | {str}:
            _refuse(field, values, lambda value: type(value) in PLAIN, "a number or null")
        return _readable(field, column, values)
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:
        _refuse(field, values, _is_finite, "a number of a usual size")
    scaled = np.abs(numbers - np.asarray(column.mean)) / np.asarray(column.std)
    if (scaled > LARGEST).any():
        _refuse_row(field, int(np.argmax(scaled > LARGEST)), values, "a number of a usual size")
    return numbers


def _readable(field: Field, column: Column, values: Sequence[Any]) -> np.ndarray:
    """Return objects of which some are texts that stand for numbers or dates."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    misfits = column.misfits(found)
    if misfits.any():
        _refuse_row(field, int(np.argmax(misfits)), values, f"one of {column.reading}, as in training")
    return found


def _dates(field: Field, values: Sequence[Any]) -> np.ndarray:
    """Return dates of a column that held dates, not texts, in training."""
    if not all(map(_is_date, values)):
        _refuse(field, values, _is_date, "a date such as 2026-01-31T12:00:00, or null")
    return np.array([value or "NaT" for value in values], "M8[us]")


def _arrays(field: Field, values: Any) -> np.ndarray:
    column = field.column
    assert column is not None
    if field.is_ragged:
        return as_ragged([_array(field, row, value) for row, value in enumerate(values)])
    try:
        found = np.asarray(values)
    except (ValueError, OverflowError):
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "fiub" or found.shape[1:] != column.shape:
        found = np.stack([_array(field, row, value) for row, value in enumerate(values)])
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        row = int(np.argmax(~np.isfinite(found.reshape(len(found), -1)).all(axis=1)))
        if np.isinf(found[row]).any() or column.kind == "ready":
            _refuse_row(field, row, values, "an array of finite numbers")
    return _as_trained(column, found)


def _array(field: Field, row: int, value: Any) -> np.ndarray:
    """Return one row's array; null is a missing number."""
    column = field.column
    assert column is not None
    try:
        found = np.asarray(value)
        found = found.astype(np.float64) if found.dtype == object else found
    except (ValueError, TypeError, OverflowError):
        found = np.empty(0, dtype=object)
    shape = found.shape[1:] if field.is_ragged else found.shape
    wanted = column.shape[1:] if field.is_ragged else column.shape
    if found.dtype.kind not in "fiub" or shape != wanted or (field.is_ragged and not found.ndim):
        sizes = ["any", *column.shape[1:]] if field.is_ragged else list(column.shape)
        of = f", not of {list(found.shape)}" if found.dtype.kind in "fiub" else ""
        _refuse_row(field, row, {row: value}, f"an array of numbers of shape {sizes}{of}")
    return _as_trained(column, found)


def _as_trained(column: Column, found: np.ndarray) -> np.ndarray:
    """Return numbers of an array in the type that they had in training, if it holds them."""
    dtype = np.dtype(column.dtype)
    if column.kind == "tensor" and found.dtype.kind == "f":
        return found
    cast = found.astype(dtype)
    return cast if dtype.kind == "f" or np.array_equal(cast, found) else found


def _is_date(value: Any) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, str) and bool(value) and np.datetime64(value, "us") is not None
    except (ValueError, OverflowError):
        return False


def _is_finite(value: Any) -> bool:
    try:
        return value is None or bool(np.isfinite(float(value)))
    except (OverflowError, TypeError, ValueError):
        return False


def _refuse(field: Field, values: Sequence[Any], fits: Any, wanted: str) -> NoReturn:
    _refuse_row(field, next(row for row, value in enumerate(values) if not fits(value)), values, wanted)


def _refuse_row(field: Field, row: int, values: Any, wanted: str) -> NoReturn:
    raise invalid(f"row {row}, column '{field.name}': {shown(values[row])} is not {wanted}", row, field.name)


def _list(names: Mapping[str, Any]) -> str:
    some = list(names)
    return ", ".join(some[:20]) + (f" and {len(some) - 20} more" if len(some) > 20 else "")
