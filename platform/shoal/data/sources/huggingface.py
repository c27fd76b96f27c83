"""Reads `huggingface:NAME`: a data set of the Hub, or a folder written by `save_to_disk`."""

import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from shoal.data.sampler import TRAIN, split_named
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import DETECTED, Block, Part, ReadOptions, Source
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
        raise DataError(
            f"data.source='{uri}' does not load ({type(error).__name__}: {str(error).splitlines()[0]}): "
            "give a data set's name on the Hub, or a folder written by save_to_disk"
        ) from error
    splits = _known_splits(uri, loaded) if isinstance(loaded, Mapping) else {"train": loaded}

    def part(split: str, rows: Any) -> Part:
        def read() -> Iterator[Block]:
            for first in range(0, len(rows), BLOCK_ROWS):
                yield table_to_block(rows.with_format("arrow")[first : first + BLOCK_ROWS])

        return Part(read, split_named(split) if len(splits) > 1 else None)

    parts = tuple(part(split, rows) for split, rows in splits.items())
    nbytes = sum(rows.data.nbytes for rows in splits.values())
    return Source(uri, "huggingface", parts, nbytes=nbytes)


def _known_splits(uri: str, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits that rows can be trained and evaluated on; a single one, of any name, is all of the data."""
    known = {split: rows for split, rows in loaded.items() if split_named(split)} or dict(loaded)
    if len(known) > 1 and TRAIN not in known:
        raise DataError(
            f"data.source='{uri}' has the splits {', '.join(loaded)}: 'train' must be among them; rename the split "
            "to train on"
        )
    return known


def _is_saved_to_disk(path: str) -> bool:
    return any(
        os.path.exists(os.path.join(path, name)) for name in ("dataset_info.json", "dataset_dict.json")
    )
