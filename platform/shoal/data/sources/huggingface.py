"""Reads `huggingface:NAME`: a data set of the Hub, or a folder written by `save_to_disk`."""

import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sampler import TRAIN, split_named
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import Block, Part, Source
from shoal.errors import DataError

BLOCK_ROWS = 1 << 16


def open_huggingface(uri: str, name: str, _: ReadOptions = DETECTED) -> Source:
    """Open a data set; its splits with names of train, validation and test are kept, others left out.

    Raises:
        DataError: the package `datasets` is missing, the data set does not load, or it has no training split.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"data.source='{uri}' needs the 'datasets' package: pip install 'shoal[huggingface]'"
        ) from None
    path, _question, config = name.partition("?")
    try:
        loaded = (
            datasets.load_from_disk(path)
            if os.path.isdir(path) and _is_saved_to_disk(path)
            else datasets.load_dataset(path, **dict(parse_qsl(config)))
        )
    except Exception as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise DataError(
            f"data.source='{uri}' does not load ({type(error).__name__}: {reason}): "
            "give a data set's name on the Hub, or a folder written by save_to_disk"
        ) from error
    return source_of_loaded(uri, loaded)


def is_loaded_set(value: Any) -> bool:
    """Whether a value is a data set of the package `datasets`, or a dict of its splits."""
    return any(base.__module__.startswith("datasets.") for base in type(value).__mro__)


def source_of_loaded(uri: str, loaded: Any) -> Source:
    """Wrap a data set of the package `datasets`; classes are the names that it states.

    Raises:
        DataError: it is streamed, it has no training split, or it has no rows.
    """
    splits = _known_splits(uri, loaded) if isinstance(loaded, Mapping) else {TRAIN: loaded}
    for rows in splits.values():
        if not hasattr(rows, "__len__"):
            raise DataError(
                f"data.source='{uri}' is a {type(rows).__name__}, whose rows have no numbers: load it without "
                "streaming=True"
            )
    if not any(map(len, splits.values())):
        raise DataError(f"data.source='{uri}' is empty: it has 0 rows; name one that has some")

    def part(split: str, rows: Any) -> Part:
        classes = _class_names(rows)

        def read() -> Iterator[Block]:
            for first in range(0, len(rows), BLOCK_ROWS):
                block = table_to_block(rows.with_format("arrow")[first : first + BLOCK_ROWS])
                yield {name: _named(column, classes.get(name)) for name, column in block.items()}

        return Part(read, split_named(split) if len(splits) > 1 else None)

    parts = tuple(part(split, rows) for split, rows in splits.items())
    nbytes = sum(rows.data.nbytes for rows in splits.values())
    left_out = [str(name) for name in loaded if name not in splits] if isinstance(loaded, Mapping) else []
    notes = (f"splits left out: {', '.join(left_out)}",) if left_out else ()
    return Source(uri, "huggingface", parts, nbytes=nbytes, notes=notes)


def _known_splits(uri: str, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits that rows can be trained and evaluated on; a single one, of any name, is all of the data."""
    known = {split: rows for split, rows in loaded.items() if split_named(split)} or dict(loaded)
    if len(known) > 1 and not any(split_named(split) == TRAIN for split in known):
        raise DataError(
            f"data.source='{uri}' has the splits {', '.join(loaded)}: 'train' must be among them; rename the split "
            "to train on"
        )
    return known


def _class_names(rows: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the values of columns that are classes."""
    return {
        name: tuple(feature.names)
        for name, feature in rows.features.items()
        if type(feature).__name__ == "ClassLabel" and feature.names
    }


def _named(column: np.ndarray, names: tuple[str, ...] | None) -> np.ndarray:
    """Return a column with the names of its classes; missing ones (-1) stay numbers."""
    if names is None or column.ndim > 1 or column.dtype.kind not in "iuf" or not (column >= 0).any():
        return column
    named = np.empty(len(column), dtype=object)
    for row, number in enumerate(column.tolist()):
        is_class = number == number and 0 <= number < len(names)
        named[row] = names[int(number)] if is_class else None if number != number else int(number)
    return named


def _is_saved_to_disk(path: str) -> bool:
    return any(
        os.path.exists(os.path.join(path, name)) for name in ("dataset_info.json", "dataset_dict.json")
    )
