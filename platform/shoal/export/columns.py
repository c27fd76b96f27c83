"""Each raw column as an input of an exported model, and the part of the graph that makes features of it.

The graph computes what `Column.features` does, in float64 and rounded once. Two things have no form in a graph: text
that is read as a number (the number is passed), and hashed text (its features are passed).
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.preprocessing import FAR, Column
from shoal.data.values import as_numbers, as_texts
from shoal.errors import DataError
from shoal.export.interface import BATCH, TEXT, Input

# Types that runtimes or torch have few operations for, and what is passed instead.
WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float16": "float32"}
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def describe_column(column: Column) -> Input:
    """Return how a column is passed; a category as its place, which ONNX looks up itself (`shoal.export.onnx_file`)."""
    if column.kind == "category":
        unseen = "any other value or none"
        meaning = f"place among categories; {len(column.categories)}: {unseen}"
        return Input(
            name=column.name, dtype="int64", shape=(BATCH,), meaning=meaning, categories=column.categories
        )
    if column.kind in ("hashed", "words"):
        unit = "each word of the text in lower case" if column.kind == "words" else "the text"
        meaning = (
            f"1 at crc32(UTF-8) % {column.width} of {unit}, else 0; all 0 where it is missing: "
            "graphs have no operation for it"
        )
        return Input(name=column.name, dtype="float32", shape=(BATCH, column.width), meaning=meaning)
    if column.kind == "number":
        meaning = f"{_unit(column)}; NaN: missing"
        return Input(name=column.name, dtype="float64", shape=(BATCH,), meaning=meaning)
    is_time = np.dtype(column.dtype).kind in "mM"
    dtype = "float64" if is_time else WIDER.get(column.dtype, column.dtype)
    return Input(
        name=column.name, dtype=dtype, shape=(BATCH, *column.shape), meaning="the array as in training"
    )


def _unit(column: Column) -> str:
    if column.is_date:
        return "date in seconds since 1970-01-01 UTC"
    if column.dtype.startswith("timedelta") or (column.reading and column.reading.kind == "duration"):
        return "duration in seconds"
    return "number"


def column_array(column: Column, values: np.ndarray, passed: Input) -> np.ndarray:
    """Return raw values [rows, ...] as an input takes them.

    Raises:
        DataError: they do not fit its type.
    """
    if column.kind == "category":
        texts = as_texts(values, column.name)
        if passed.dtype == TEXT:
            return np.array(["" if text is None else text for text in texts], dtype=object)
        places = {text: place for place, text in enumerate(column.categories)}
        return np.array([places.get(text, len(places)) for text in texts], dtype=np.int64)
    if column.kind in ("hashed", "words"):
        return column.features(values)
    if column.kind == "number":
        is_read = column.reading is not None or values.dtype.kind in "OUS"
        return column.read(values) if is_read else as_numbers(values)
    if values.dtype.kind in "mM":
        return as_numbers(values)
    found = values.astype(passed.dtype)
    if values.dtype.kind in "iub" and not np.array_equal(found, values):
        raise DataError(
            f"column '{column.name}' holds {values.dtype} numbers that are no {passed.dtype}, of which the model was "
            "trained: name data of that type with data.source=..."
        )
    return found


def column_module(column: Column) -> nn.Module:
    """Return what makes features of an input that is no number; `Numbers` takes all of those."""
    if column.kind == "category":
        return _OneHot(len(column.categories) + 1)
    return _Standardized(column) if column.kind == "tensor" else _Ready(column)


class _OneHot(nn.Module):
    """Places [n] to [n, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, places: Tensor) -> Tensor:
        return (places[:, None] == torch.arange(self.width)).float()


def _scaled(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (x - mean) / std, computed in float64 and rounded once; NaN where there is no number.

    An infinite number is none. It is compared with infinity, since exporters test a float64 for it as a float32, to
    which 1e39 is infinite.
    """
    x = torch.where(x.abs() == torch.inf, torch.nan, x)
    return ((x - mean) / std).float()


def _buffer(values: Any) -> nn.Buffer:
    return nn.Buffer(torch.tensor(values, dtype=torch.float64))


class Numbers(nn.Module):
    """Columns of numbers, [n] each, to [n, features]: their numbers, then where those are missing that say so.

    All columns are computed together, in ten operations instead of ten for each.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.mean, self.std = _buffer([one.mean for one in columns]), _buffer([one.std for one in columns])
        self._ranges = [_missing_ranges(one) for one in columns]
        self._marking = [place for place, one in enumerate(columns) if one.has_missing]
        most = [FAR if one.is_date else torch.inf for one in columns]
        self.most = nn.Buffer(torch.tensor(most)) if any(one.is_date for one in columns) else None

    def forward(self, *raw: Tensor) -> Tensor:
        blanked = [_blanked(x, ranges) for x, ranges in zip(raw, self._ranges, strict=True)]
        scaled = _scaled(torch.stack(blanked, dim=1), self.mean, self.std)
        missing = scaled.isnan()
        scaled = torch.where(missing, 0.0, scaled)
        if self.most is not None:
            scaled = scaled.clamp(-self.most, self.most)
        if not self._marking:
            return scaled
        return torch.cat([scaled, missing[:, self._marking].float()], dim=1)


def _blanked(x: Tensor, ranges: Sequence[tuple[float, float]]) -> Tensor:
    for low, high in ranges:
        x = torch.where((x >= low) & (x < high) if high > low else x == low, torch.nan, x)
    return x


def _missing_ranges(column: Column) -> Sequence[tuple[float, float]]:
    """Return numbers that `Column.missing` names: from the first to before the second, or the one number that both are.

    Where a column was text in training, the texts are missing and not the numbers.
    """
    if column.reading is not None:
        return ()
    if column.dtype.startswith("datetime"):
        days = [np.datetime64(text) for text in column.missing if DAY.match(text)]
        return [(_seconds(day), _seconds(day + 1)) for day in days]
    found = []
    for text in column.missing:
        try:
            found.append((float(text), float(text)))
        except ValueError:
            continue
    return found


def _seconds(time: np.datetime64) -> float:
    return int(time.astype("datetime64[us]").astype(np.int64)) / 1e6


class _Standardized(nn.Module):
    """An array [n, ...] to the same."""

    def __init__(self, column: Column) -> None:
        super().__init__()
        self.mean, self.std, self._is_date = _buffer(column.mean), _buffer(column.std), column.is_date

    def forward(self, x: Tensor) -> Tensor:
        scaled = _scaled(x.double(), self.mean, self.std)
        scaled = torch.where(scaled.isnan(), 0.0, scaled)
        return scaled.clamp(-FAR, FAR) if self._is_date else scaled


class _Ready(nn.Module):
    """An array as it is, in the type that `Column.features` makes of it."""

    def __init__(self, column: Column) -> None:
        super().__init__()
        self._dtype = torch.float32
        if column.kind == "ready":
            self._dtype = torch.from_numpy(column.features(np.zeros(1, dtype=column.dtype))).dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self._dtype)
