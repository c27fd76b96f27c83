"""Values of columns as numbers, as texts and as classes: what the fitted transform computes with."""

import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from shoal.data.cells import Reading
from shoal.errors import DataError

BUCKETS = 128  # that values or words are hashed into

WORD = re.compile(r"\w+")


def as_numbers(values: np.ndarray) -> np.ndarray:
    """Return float64 with NaN for missing values; times in seconds since 1970."""
    if values.dtype.kind in "mM":
        unit = "datetime64[us]" if values.dtype.kind == "M" else "timedelta64[us]"
        return np.where(np.isnat(values), np.nan, values.astype(unit).astype(np.int64) / 1e6)
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
        return [as_class(value) for value in values]
    return list(values.tolist())


def as_class(value: Any) -> bool | int | str:
    """Return one label value as plain Python."""
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.number) and float(value).is_integer():
        return int(value)
    return str(value)


def as_texts(values: np.ndarray, name: str = "") -> np.ndarray:
    """Return values as objects of str, those that are missing as None.

    Raises:
        DataError: a value is no text, number, boolean or date: it has no form as a category.
    """
    texts = values.astype(object)
    missing = is_missing(texts)
    texts[missing] = None
    kinds = {type(value) for value in texts[~missing]}
    for kind in kinds:
        if issubclass(kind, bytes | Mapping | list | tuple | set | np.ndarray):
            what = "bytes" if kind is bytes else f"values of type {kind.__name__}"
            raise DataError(
                f"column '{name}' holds {what}, and a column needs one text or number per row: set "
                f"data.columns={{{name}: drop}}, or write it as several columns"
            )
    if not all(issubclass(kind, str) for kind in kinds):
        texts[~missing] = [str(as_class(value)) for value in texts[~missing]]
    return texts


def read_cells(values: np.ndarray, reading: Reading) -> np.ndarray:
    """Return numbers of objects [n], of which some are texts."""
    are_texts = np.array([isinstance(value, str) for value in values], dtype=bool)
    numbers = np.full(len(values), np.nan)
    if are_texts.any():
        numbers[are_texts] = reading.numbers(values[are_texts])
    if not are_texts.all():
        numbers[~are_texts] = as_numbers(values[~are_texts])
    return numbers


def hashed(texts: np.ndarray, by_word: bool) -> np.ndarray:
    """Return [n, BUCKETS] with 1 in the bucket of each text, or of each of its words."""
    features = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for row, text in enumerate(texts):
        if text is None:
            continue
        for word in WORD.findall(text.lower()) if by_word else (text,):
            features[row, zlib.crc32(word.encode()) % BUCKETS] = 1.0
    return features
