"""The fitted transform: raw columns to the tensors that a model takes, and back from outputs to labels.

It is fitted on the training split alone and saved with every checkpoint and model, so that prediction applies the same
one. Depends on columns; independent of files, splits and models.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from shoal.data.tokenizer import tokenizer_from_json
from shoal.errors import DataError, nearest

MAX_CATEGORIES = 100  # of a text column: its most frequent values; the rest share one "other" column
ROUNDED_BITS = 24  # of statistics that are kept, as many as a float32 has
CONSTANT = 1e-12  # a std below this share of the mean is a constant's, up to rounding

STATISTICS_BYTES = 256 << 20  # of float64 numbers whose statistics are computed at a time

Kind = Literal["number", "category", "tensor", "ready"]

# Types of rows that are kept as they are, since float32 takes more memory.
NARROW = ("bool", "int8", "uint8", "int16")


class Column(BaseModel):
    """How one raw column becomes features.

    number: (x - mean) / std; a missing value is the mean, marked in a 0/1 column if training rows had any.
    category: one column per frequent value, and one for all other or missing values.
    tensor: as number, per element for [rows, n], over all elements for more dimensions.
    ready: unchanged.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = "float64"
    mean: list[float] | float = 0.0
    std: list[float] | float = 1.0
    has_missing: bool = False
    categories: tuple[str, ...] = ()

    def features(self, values: np.ndarray) -> np.ndarray:
        """Return [rows, columns], or [rows, ...] for a tensor of more dimensions."""
        if self.kind == "ready":
            if values.dtype == np.uint16:
                # Token ids: half the size of int64, and torch has few operations for uint16.
                return values.astype(np.int32)
            return values.astype(np.float32) if values.dtype.kind in "fub" else values.astype(np.int64)
        if self.kind == "category":
            return self._one_hot(values)
        numbers = as_numbers(values)
        if numbers.shape[1:] != self.shape:
            raise DataError(
                f"column '{self.name}' has shape {numbers.shape[1:]} per row: the model was trained on {self.shape}"
            )
        scaled = ((numbers - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)
        missing = np.isnan(scaled)
        scaled[missing] = 0.0
        if self.kind == "tensor":
            return np.asarray(scaled)
        parts = [scaled[:, None], missing[:, None].astype(np.float32)]
        return np.concatenate(parts if self.has_missing else parts[:1], axis=1)

    def _one_hot(self, values: np.ndarray) -> np.ndarray:
        numbers = {category: number for number, category in enumerate(self.categories)}
        index = np.fromiter(
            (numbers.get(str(value), len(numbers)) for value in values), np.int64, len(values)
        )
        return np.eye(len(numbers) + 1, dtype=np.float32)[index]


class Label(BaseModel):
    """How the label column becomes targets: class numbers, or standardized values."""

    model_config = ConfigDict(frozen=True)
    name: str
    classes: tuple[bool | int | str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Return [rows] int64 class numbers or float32 standardized values.

        Raises:
            DataError: a value is missing, or is a class that the training data do not have.
        """
        values = values.reshape(len(values))
        if not self.classes:
            numbers = as_numbers(values)
            return ((numbers - self.mean) / self.std).astype(np.float32)
        numbers_of = {name: number for number, name in enumerate(self.classes)}
        plain = as_classes(values)
        unknown = next((value for value in plain if value not in numbers_of), None)
        if unknown is not None:
            raise DataError(
                f"label column '{self.name}' holds {unknown!r}, which is not among the {len(self.classes)} classes "
                f"of the model ({', '.join(map(str, self.classes[:10]))}): drop these rows, or train with them"
            )
        return np.fromiter((numbers_of[value] for value in plain), np.int64, len(plain))

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Turn class numbers [rows] or standardized values [rows] back into labels."""
        if self.classes:
            return np.asarray(np.asarray(self.classes)[outputs])
        return outputs.astype(np.float64) * self.std + self.mean


class Transform(BaseModel):
    """Columns to features and label to targets, as fitted.

    Attributes:
        columns: of the features, in order.
        label: with an empty name where there is no column to predict.
        tokenizer: of rows of tokens, as JSON.
        shape: to which flat rows are reshaped.
    """

    model_config = ConfigDict(frozen=True)
    columns: tuple[Column, ...]
    label: Label
    tokenizer: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def has_label(self) -> bool:
        """Whether there is a column to predict."""
        return self.label.name != ""

    @property
    def vocabulary(self) -> int:
        """The number of token ids; 0 if rows are not tokens."""
        return tokenizer_from_json(self.tokenizer).vocabulary if self.tokenizer else 0

    @property
    def narrow(self) -> Column | None:
        """The one column whose rows are kept in their own type and widened batch by batch; None: there is none."""
        only = self.columns[0]
        is_narrow = len(self.columns) == 1 and only.kind in ("tensor", "ready") and only.dtype in NARROW
        return only if is_narrow else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of what the model takes as one sample."""
        if self.shape:
            return self.shape
        only = self.columns[0]
        if not self.has_label:
            return (only.shape[0] - 1,)  # the last token of a row is a target only
        if len(self.columns) == 1 and only.kind in ("tensor", "ready"):
            return only.shape
        return (sum(self._width(column) for column in self.columns),)

    @property
    def outputs(self) -> int:
        """How many numbers the model must return per sample, or per token."""
        return len(self.label.classes) or (1 if self.has_label else self.vocabulary)

    def features(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return [rows, *input_shape], float32 (or an integer type where the data is ready and of integers).

        Raises:
            DataError: a column is missing.
        """
        for column in self.columns:
            if column.name not in block:
                raise DataError(
                    f"column '{column.name}' is missing{nearest(column.name, block)}: the model needs "
                    f"{', '.join(column.name for column in self.columns[:20])}"
                )
        parts = [column.features(block[column.name]) for column in self.columns]
        if len(parts) == 1 and not self.shape:
            return np.ascontiguousarray(parts[0])
        rows = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        return rows.reshape(-1, *self.shape) if self.shape else rows

    def stored(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what rows are kept as: `features`, or `narrow` ones in their own type and the shape of `features`.

        Raises:
            DataError: as `features`.
        """
        column = self.narrow
        values = block[column.name] if column is not None and column.name in block else None
        if column is None or values is None or values.shape[1:] != column.shape:
            return self.features(block)
        if not np.can_cast(values.dtype, column.dtype):
            return self.features(block)  # numbers of a wider type than in training
        return np.ascontiguousarray(values.astype(column.dtype, copy=False)).reshape(-1, *self.input_shape)

    def targets(self, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return [rows] targets; [rows, 0] where there is no label.

        Raises:
            DataError: the label is missing or unknown.
        """
        if not self.has_label:
            return np.zeros((len(next(iter(block.values()))), 0), dtype=np.float32)
        if self.label.name not in block:
            raise DataError(
                f"label column '{self.label.name}' is missing{nearest(self.label.name, block)}: "
                f"the columns are {', '.join(block)}"
            )
        return self.label.targets(block[self.label.name])

    @staticmethod
    def _width(column: Column) -> int:
        if column.kind == "category":
            return len(column.categories) + 1
        return int(np.prod(column.shape)) + column.has_missing


@dataclass
class Moments:
    """Count, mean and squared deviations, merged by eq. 2.1 of Chan, Golub and LeVeque (1979)."""

    count: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Moments":
        """Summarise [rows, ...] over the rows, without NaN."""
        is_known = ~np.isnan(numbers)
        count = is_known.sum(axis=0)
        known = np.where(is_known, numbers, 0.0)
        mean = known.sum(axis=0) / np.maximum(count, 1)
        deviations = np.where(is_known, (numbers - mean) ** 2, 0.0).sum(axis=0)
        return cls(count, mean, deviations)

    def merge(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        safe = np.maximum(count, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / safe
        deviations = self.deviations + other.deviations + delta**2 * self.count * other.count / safe
        return Moments(count, mean, deviations)

    def fitted(self) -> tuple[Any, Any]:
        """Return (mean, std), rounded so that they do not depend on the order of summation; a constant has std 1."""
        std = np.sqrt(self.deviations / np.maximum(self.count, 1))
        std = np.where(std > CONSTANT * np.abs(self.mean), std, 1.0)
        return _rounded(self.mean, std), _rounded(std, std)


@dataclass
class ColumnStats:
    """Statistics of one column over training rows; those of blocks can be merged."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    rows: int
    missing: int
    moments: Moments | None = None
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, values: np.ndarray, is_ready: bool) -> "ColumnStats":
        kind: Kind = "ready" if is_ready and values.dtype.kind in "biuf" else _kind(values)
        stats = cls(kind, values.shape[1:], str(values.dtype), len(values), 0)
        if kind == "category":
            missing = is_missing(values)
            stats.counts = Counter(map(str, values[~missing]))
            stats.missing = int(missing.sum())
        elif kind != "ready":
            step = max(1, STATISTICS_BYTES // max(1, 8 * values[:1].size))
            for first in range(0, max(1, len(values)), step):
                numbers = as_numbers(values[first : first + step])
                stats.missing += int(np.isnan(numbers).sum())
                moments = Moments.of(numbers.reshape(-1) if numbers.ndim > 2 else numbers)
                stats.moments = stats.moments.merge(moments) if stats.moments else moments
        return stats

    def merge(self, other: "ColumnStats", name: str) -> "ColumnStats":
        dtype = _common_dtype(self.dtype, other.dtype)
        if self.rows == 0 or other.rows == 0:
            return replace(other if self.rows == 0 else self, dtype=dtype)
        if self.kind != other.kind or self.shape != other.shape:
            raise DataError(
                f"column '{name}' is {self.kind} {self.shape} in one part of the data and {other.kind} "
                f"{other.shape} in another: make it one type throughout"
            )
        moments = self.moments.merge(other.moments) if self.moments and other.moments else None
        return ColumnStats(
            self.kind,
            self.shape,
            dtype,
            self.rows + other.rows,
            self.missing + other.missing,
            moments,
            self.counts + other.counts,
        )

    def fit(self, name: str) -> Column:
        if self.kind == "ready":
            return Column(name=name, kind="ready", shape=self.shape, dtype=self.dtype)
        if self.kind == "category":
            frequent = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES]
            categories = tuple(sorted(value for value, _ in frequent))
            return Column(name=name, kind="category", dtype="object", categories=categories)
        assert self.moments is not None
        mean, std = self.moments.fitted()
        return Column(
            name=name,
            kind=self.kind,
            shape=self.shape,
            dtype=self.dtype,
            mean=mean,
            std=std,
            has_missing=self.kind == "number" and self.missing > 0,
        )


def as_numbers(values: np.ndarray) -> np.ndarray:
    """Return float64 with NaN for missing values; times in seconds since 1970."""
    if values.dtype.kind in "mM":
        unit = "datetime64[ns]" if values.dtype.kind == "M" else "timedelta64[ns]"
        return np.where(np.isnat(values), np.nan, values.astype(unit).astype(np.int64) / 1e9)
    if values.dtype == object:
        import pandas as pd

        flat = pd.to_numeric(pd.Series(values.ravel()), errors="coerce")
        values = np.asarray(flat.to_numpy(np.float64)).reshape(values.shape)
    numbers = values.astype(np.float64)
    return np.where(np.isinf(numbers), np.nan, numbers)


def is_missing(values: np.ndarray) -> np.ndarray:
    """Return where values are missing: None, NaN, NaT."""
    import pandas as pd  # imported here: it takes 0.3 s, and workers and trials receive rows that do not need it

    return np.asarray(pd.isna(values))


def as_classes(values: np.ndarray) -> list[bool | int | str]:
    """Return label values as plain Python: 3.0 is class 3."""
    if values.dtype.kind == "f":
        return [int(value) if float(value).is_integer() else str(value) for value in values]
    if values.dtype.kind == "O":
        return [_as_class(value) for value in values]
    return list(values.tolist())


def _as_class(value: Any) -> bool | int | str:
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.number) and float(value).is_integer():
        return int(value)
    return str(value)


def _common_dtype(one: str, other: str) -> str:
    """Return the type that holds the values of two blocks: with missing numbers in one of them it is a float."""
    return one if one == other else str(np.result_type(np.dtype(one), np.dtype(other)))


def _kind(values: np.ndarray) -> Kind:
    if values.ndim > 1:
        return "tensor"
    if values.dtype.kind in "iufbmM":
        return "number"
    known = values[~is_missing(values)]
    is_numeric = len(known) > 0 and all(isinstance(value, bool | int | float | np.number) for value in known)
    return "number" if is_numeric else "category"


def _rounded(numbers: np.ndarray, std: np.ndarray) -> Any:
    """Return numbers as lists, rounded to `ROUNDED_BITS` binary digits of the std."""
    unit = np.ldexp(1.0, np.frexp(std)[1] - ROUNDED_BITS)
    return (np.round(numbers / unit) * unit).tolist()
