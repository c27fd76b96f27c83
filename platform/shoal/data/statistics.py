"""Statistics of one column over training rows, from which its kind and its transform are fitted.

Those of blocks can be merged, whatever process read them; what they hold does not grow with the rows. Depends on
`preprocessing` and `cells`; independent of labels, splits and files.
"""

from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal as PlainDecimal

import numpy as np

from shoal.data.cells import MOSTLY, Reading, blanked, candidates, is_missing_text, other_way
from shoal.data.moments import Moments
from shoal.data.preprocessing import (
    DEFAULTS,
    MAX_CATEGORIES,
    OPEN_BEGINNING,
    OPEN_END,
    Column,
    ColumnOptions,
    Kind,
)
from shoal.data.sampler import mix
from shoal.data.sketch import Sketch
from shoal.data.values import as_numbers, as_texts, is_missing
from shoal.errors import DataError

STATISTICS_BYTES = 256 << 20  # of float64 numbers whose statistics are computed at a time
MOST_DISTINCT = 10_000  # values of a text column that are counted one by one
SAMPLED = 4096  # numbers of a block that are looked at for what only a glance is needed
UNKNOWN = "?"  # among categories; a text such as "-" or "none" may be one of them
WORDS = 4  # and more in a value on average: it is prose


@dataclass
class NumberStats:
    """A column of numbers.

    Attributes:
        infinite: values that are inf, which count as missing.
        open_ends: dates that mean "no end" or "no beginning", which the moments leave out.
        lowest, highest: of whole numbers; None: there are others, or none.
    """

    moments: Moments
    infinite: int
    open_ends: int
    sketch: Sketch
    lowest: float | None
    highest: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> "NumberStats":
        step = max(1, STATISTICS_BYTES // max(1, 8 * values[:1].size))
        moments: Moments | None = None
        infinite = open_ends = 0
        for first in range(0, max(1, len(values)), step):
            part = values[first : first + step]
            numbers = as_numbers(part)
            if part.dtype.kind == "M":
                are_open = _are_open(numbers)
                open_ends += int(are_open.sum())
                numbers[are_open] = np.nan
            found = Moments.of(numbers.reshape(-1) if numbers.ndim > 2 else numbers)
            infinite += _infinite(part)
            moments = moments.merge(found) if moments else found
        assert moments is not None
        some = as_numbers(values[:: max(1, len(values) // SAMPLED)])
        some = some[~np.isnan(some)] if some.ndim == 1 else some[:0]
        lowest = highest = None
        if some.size and np.all(some == np.floor(some)):
            numbers = as_numbers(values)
            lowest, highest = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        sketch = Sketch.of(mix(np.ascontiguousarray(some.reshape(-1)).view(np.uint64)), some.size)
        return cls(moments, infinite, open_ends, sketch, lowest, highest)

    def merge(self, other: "NumberStats") -> "NumberStats":
        lows = [one for one in (self.lowest, other.lowest) if one is not None]
        highs = [one for one in (self.highest, other.highest) if one is not None]
        whole = len(lows) == 2 or not (self.sketch.looked_at and other.sketch.looked_at)
        return NumberStats(
            self.moments.merge(other.moments),
            self.infinite + other.infinite,
            self.open_ends + other.open_ends,
            self.sketch.merge(other.sketch),
            min(lows) if lows and whole else None,
            max(highs) if highs and whole else None,
        )

    @property
    def are_row_numbers(self) -> bool:
        """Whether the numbers are n whole ones in a row, each once."""
        if self.lowest is None or self.highest is None or not self.sketch.are_all_different:
            return False
        return self.highest - self.lowest + 1 == int(np.max(self.moments.count))

    @property
    def is_constant(self) -> bool:
        return bool(np.all(self.moments.deviations == 0))


@dataclass
class Readable:
    """Cells of text that a reading understands: how many, their moments, and one that it does not."""

    count: int
    moments: Moments
    odd: str | None

    def merge(self, other: "Readable") -> "Readable":
        return Readable(self.count + other.count, self.moments.merge(other.moments), self.odd or other.odd)


@dataclass
class TextStats:
    """A column of text.

    Attributes:
        cells: that are not missing.
        tokens: of them, those that stand for a missing value where numbers are expected.
        token: one of these texts.
        zeros: of them, those with a leading zero, as codes have.
        words: in all cells together.
        counts: of the different values; None: there are more than `MOST_DISTINCT`.
        readings: how the cells can be numbers.
    """

    cells: int
    tokens: int
    token: str | None
    zeros: int
    words: int
    counts: Counter[str] | None
    sketch: Sketch
    readings: dict[Reading, Readable]

    @classmethod
    def of(cls, values: np.ndarray, options: ColumnOptions, name: str) -> "TextStats":
        """Summarise texts [n], or what becomes text; missing values are left out.

        Raises:
            DataError: a value has no form as a text.
        """
        import pandas as pd

        try:
            places, found = pd.factorize(values)
        except TypeError:  # lists and mappings cannot be compared
            places, found = pd.factorize(as_texts(values, name))
        distinct = as_texts(np.array([*found, None], dtype=object)[:-1], name)
        weights = np.bincount(places[places >= 0], minlength=len(distinct))
        are_tokens = is_missing_text(distinct, options.missing)
        texts, counts = distinct[~are_tokens], weights[~are_tokens]
        readings = {
            reading: _readable(reading, texts, counts) for reading in candidates(texts, options.decimal)
        }
        some = distinct[:SAMPLED]
        return cls(
            cells=int(weights.sum()),
            tokens=int(weights[are_tokens].sum()),
            token=next(iter(distinct[are_tokens]), None),
            zeros=int(counts[[_has_leading_zero(text) for text in texts]].sum()) if readings else 0,
            words=round(sum(text.count(" ") + 1 for text in some) * weights.sum() / max(1, len(some))),
            counts=Counter(dict(zip(distinct.tolist(), weights.tolist(), strict=True)))
            if len(distinct) <= MOST_DISTINCT
            else None,
            sketch=Sketch.of(pd.util.hash_array(distinct), int(weights.sum())),
            readings=readings,
        )

    def merge(self, other: "TextStats") -> "TextStats":
        counts = self.counts + other.counts if self.counts is not None and other.counts is not None else None
        return TextStats(
            self.cells + other.cells,
            self.tokens + other.tokens,
            self.token or other.token,
            self.zeros + other.zeros,
            self.words + other.words,
            counts if counts is not None and len(counts) <= MOST_DISTINCT else None,
            self.sketch.merge(other.sketch),
            self._merged_readings(other),
        )

    def _merged_readings(self, other: "TextStats") -> dict[Reading, Readable]:
        if not self.values:
            return other.readings
        if not other.values:
            return self.readings
        shared = [reading for reading in self.readings if reading in other.readings]
        return {reading: self.readings[reading].merge(other.readings[reading]) for reading in shared}

    @property
    def values(self) -> int:
        """Cells that are not tokens for a missing value."""
        return self.cells - self.tokens

    @property
    def reading(self) -> Reading | None:
        """How most cells are numbers; None: they are text."""
        best = max(self.readings, key=lambda one: self.readings[one].count, default=None)
        if best is None or self.readings[best].count < MOSTLY * self.values:
            return None
        if best.kind == "number" and self.zeros:
            return None
        same = [one for one in self.readings if self.readings[one].count == self.readings[best].count]
        is_ambiguous = best.kind == "date" and other_way(best.format) in {one.format for one in same}
        return best.model_copy(update={"is_ambiguous": is_ambiguous})

    def readable(self, reading: Reading) -> Readable:
        """Return the cells that the found reading understands."""
        return self.readings[reading.model_copy(update={"is_ambiguous": False})]

    @property
    def is_prose(self) -> bool:
        return self.cells > 0 and self.words >= WORDS * self.cells


@dataclass
class ColumnStats:
    """Statistics of one column over training rows; those of blocks can be merged."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    rows: int
    missing: int
    numbers: NumberStats | None = None
    text: TextStats | None = None

    @classmethod
    def of(cls, values: np.ndarray, name: str = "", options: ColumnOptions = DEFAULTS) -> "ColumnStats":
        wanted = options.kinds.get(name)
        values = blanked(values, options.missing or ())
        if wanted in ("category", "text") and values.ndim == 1:
            values = as_texts(values, name)
        kind = _kind(values, name)
        stats = cls(kind, values.shape[1:], str(values.dtype), len(values), 0)
        if kind == "category":
            stats.text = TextStats.of(values, options, name)
            stats.missing = len(values) - stats.text.cells
        else:
            stats.numbers = NumberStats.of(values)
            stats.missing = int(values.size - stats.numbers.moments.total - stats.numbers.open_ends)
        return stats

    def merge(self, other: "ColumnStats", name: str) -> "ColumnStats":
        dtype = _common_dtype(self.dtype, other.dtype)
        if not self._holds_values or not other._holds_values:
            known, empty = (other, self) if not self._holds_values else (self, other)
            return replace(
                known, dtype=dtype, rows=self.rows + other.rows, missing=known.missing + empty.rows
            )
        if self.kind != other.kind or self.shape != other.shape:
            raise DataError(
                f"column '{name}' is {self.kind} {self.shape} in one part of the data and {other.kind} "
                f"{other.shape} in another: make it one type throughout"
            )
        return ColumnStats(
            self.kind,
            self.shape,
            dtype,
            self.rows + other.rows,
            self.missing + other.missing,
            self.numbers.merge(other.numbers) if self.numbers and other.numbers else None,
            self.text.merge(other.text) if self.text and other.text else None,
        )

    @property
    def _holds_values(self) -> bool:
        return self.missing < self.rows * max(1, int(np.prod(self.shape)))

    def fit(self, name: str, options: ColumnOptions = DEFAULTS) -> Column:
        """Return the column's transform.

        Args:
            name: of the column.
            options: what the config says of columns.

        Raises:
            DataError: the column cannot be of that kind, or its numbers are too large.
        """
        wanted, missing = options.kinds.get(name), options.missing
        if self.text is not None:
            return self._fit_text(self.text, name, wanted, missing)
        assert self.numbers is not None
        if wanted == "date" and self.kind == "number" and not self.dtype.startswith("datetime"):
            raise DataError(
                f"data.columns says that '{name}' is a date, and it holds numbers: leave it a number, or write "
                "dates as text, e.g. 2024-12-31"
            )
        mean, std = _fitted(self.numbers.moments, name)
        return Column(
            name=name,
            kind=self.kind,
            shape=self.shape,
            dtype=self.dtype,
            mean=mean,
            std=std,
            has_missing=self.kind == "number" and self.missing > 0,
            missing=missing or (),
        )

    def _fit_text(
        self, text: TextStats, name: str, wanted: str | None, missing: tuple[str, ...] | None
    ) -> Column:
        reading = text.reading if wanted in (None, "number", "date") else None
        if wanted in ("number", "date") and (
            reading is None or (reading.kind == "date") != (wanted == "date")
        ):
            raise DataError(
                f"data.columns says that '{name}' is a {wanted}, and most of its cells are none (e.g. "
                f"{self._example()!r}): fix them, or say category, text or drop"
            )
        if reading is not None:
            readable = text.readable(reading)
            mean, std = _fitted(readable.moments, name)
            unknown = self.missing + text.cells - readable.count
            return Column(
                name=name,
                kind="number",
                mean=mean,
                std=std,
                has_missing=unknown > 0,
                reading=reading,
                missing=missing or (),
            )
        unknown_text = (UNKNOWN,) if missing is None and text.counts and UNKNOWN in text.counts else ()
        column = Column(name=name, kind="category", dtype="object", missing=missing or unknown_text)
        is_short = text.counts is not None and len(text.counts) <= MAX_CATEGORIES
        if wanted == "text" or (wanted is None and not is_short and text.is_prose):
            return column.model_copy(update={"kind": "words"})
        if not is_short:
            return column.model_copy(update={"kind": "hashed"})
        known = tuple(sorted(set(text.counts or ()) - set(column.missing)))
        return column.model_copy(update={"categories": known})

    def _example(self) -> str:
        assert self.text is not None
        return next(iter(self.text.counts or ()), "") if self.text.counts is not None else ""


def _readable(reading: Reading, values: np.ndarray, counts: np.ndarray) -> Readable:
    numbers = reading.numbers(values)
    known = ~np.isnan(numbers)
    usual = known & ~_are_open(numbers) if reading.kind == "date" else known
    moments = Moments.weighted(numbers[usual], counts[usual])
    odd = next(iter(values[~known]), None)
    return Readable(int(counts[known].sum()), moments, odd)


def _are_open(dates: np.ndarray) -> np.ndarray:
    return np.asarray((dates < OPEN_BEGINNING) | (dates >= OPEN_END))


def _has_leading_zero(text: str) -> bool:
    return len(text) > 1 and text[0] == "0" and text.isdigit()


def _infinite(values: np.ndarray) -> int:
    return int(np.isinf(values).sum()) if values.dtype.kind == "f" else 0


def _fitted(moments: Moments, name: str) -> tuple[object, object]:
    mean, std = moments.fitted()
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std))):
        raise DataError(
            f"column '{name}' holds numbers of more than 1e150, whose variance is no float64: take their logarithm, or "
            f"set data.columns={{{name}: drop}}"
        )
    return mean, std


def _common_dtype(one: str, other: str) -> str:
    """Return the type that holds the values of two blocks: with missing numbers in one of them it is a float."""
    return one if one == other else str(np.result_type(np.dtype(one), np.dtype(other)))


def _kind(values: np.ndarray, name: str) -> Kind:
    if values.ndim > 1:
        if values.dtype.kind in "OUS":
            raise DataError(
                f"column '{name}' holds lists of texts, and a list must hold numbers: write one column for each item, "
                f"or set data.columns={{{name}: drop}}"
            )
        return "tensor"
    if values.dtype.kind in "iufbmM":
        return "number"
    known = values[~is_missing(values)]
    is_numeric = len(known) > 0 and all(
        isinstance(value, bool | int | float | np.number | PlainDecimal) for value in known
    )
    return "number" if is_numeric else "category"
