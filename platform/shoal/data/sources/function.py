"""Reads `package.module:function`: whatever data a user's own function returns."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from shoal.config.import_path import find
from shoal.config.secrets import reveal
from shoal.data.random_state import seed_random_states, seeded
from shoal.data.sampler import TRAIN, mix, split_named
from shoal.data.sources.arrow import table_to_block, to_array
from shoal.data.sources.base import (
    DETECTED,
    IN_DRIVER_BYTES,
    Block,
    Chunks,
    Part,
    ReadOptions,
    Source,
    in_memory_source,
)
from shoal.errors import DataError, UserError

BLOCK_BYTES = 32 << 20  # of a map-style dataset read at a time
BATCH_ROWS = 1 << 16  # of a Ray Dataset read at a time
DATA_SEED = 0  # of what a user's function draws: one for all runs, whose data do not depend on their seeds


@dataclass(frozen=True)
class Items:
    """A map-style torch Dataset; what an item draws from random generators depends on its row alone."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: Iterable[int]) -> Block:
        """Return some rows as a block."""
        with seeded(DATA_SEED):
            return items_to_block([self._item(row) for row in rows])

    def _item(self, row: int) -> Any:
        seed_random_states(int(mix(np.uint64(DATA_SEED + row))) >> 1)
        return self.dataset[row]


def source_from_value(uri: str, value: Any) -> Source:
    """Wrap what a user's function returned: a frame, a torch Dataset, a Ray Dataset, or a dict of splits."""
    if isinstance(value, Mapping) and value and all(map(split_named, value)):
        inner = {split_named(name): source_from_value(uri, part) for name, part in value.items()}
        if TRAIN not in inner:
            raise DataError(
                f"data.source='{uri}' returned splits {', '.join(value)}: 'train' must be among them"
            )
        return Source(
            uri,
            "splits",
            tuple(replace(part, split=split) for split, source in inner.items() for part in source.parts),
            nbytes=sum(source.nbytes for source in inner.values()),
            is_ready=inner[TRAIN].is_ready,
        )
    if is_ray_dataset(value):
        part = Part(lambda: _ray_blocks(value), dataset=value)
        return Source(uri, "ray", (part,), nbytes=IN_DRIVER_BYTES + 1)
    if isinstance(value, Mapping):
        block = {str(name): np.asarray(column) for name, column in value.items()}
        for name, column in block.items():
            if column.ndim == 0:
                raise DataError(
                    f"data.source='{uri}' returned one value as column '{name}': return an array of rows"
                )
        lengths = {name: len(column) for name, column in block.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"data.source='{uri}' returned columns of different lengths {lengths}: rows must match"
            )
        return in_memory_source(uri, block)
    if hasattr(value, "to_pandas"):
        value = value.to_pandas()
    if hasattr(value, "iloc"):
        return in_memory_source(uri, {str(name): to_array(value[name]) for name in value.columns})
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes):
        return _indexed(uri, Items(value))
    raise DataError(
        f"data.source='{uri}' returned a {type(value).__name__}: return a pandas frame, a Ray Dataset, a "
        "map-style torch Dataset (with __len__ and __getitem__), or a dict of these by split"
    )


def is_ray_dataset(value: Any) -> bool:
    return any(base.__module__.startswith("ray.data") for base in type(value).__mro__)


def items_to_block(items: list[Any], label: str = "target") -> Block:
    """Stack the items of a map-style dataset: tuples (features, label) or dicts."""
    if isinstance(items[0], Mapping):
        return {str(name): np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}
    if isinstance(items[0], tuple | list) and len(items[0]) == 2:
        return {
            "features": np.stack([np.asarray(item[0]) for item in items]),
            label: np.stack([np.asarray(item[1]) for item in items]),
        }
    raise DataError(
        f"an item of the dataset is a {type(items[0]).__name__}: return a pair (features, label) or a dict"
    )


def open_function(uri: str, options: ReadOptions = DETECTED) -> Source:
    """Call a user's function `package.module:function?name=value&...` and wrap what it returns.

    torch, NumPy and `random` are seeded meanwhile, with the same seed in every run: it returns the same rows again.

    Raises:
        UserError: it cannot be imported, or raises.
        DataError: it returns something that is not data.
    """
    path, _, query = reveal(uri).partition("?")
    function = find(path, "data.source")
    try:
        with seeded(DATA_SEED):
            value = function(**{name: _literal(text) for name, text in parse_qsl(query)})
    except Exception as error:
        raise UserError(
            f"data.source='{uri}' raised {type(error).__name__}: {error}: fix the function "
            "(SHOAL_TRACEBACK=1 shows where)"
        ) from error
    return source_from_value(uri, value)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _indexed(uri: str, items: Items) -> Source:
    """Wrap a map-style torch Dataset: its items are what the model takes."""
    if len(items) == 0:
        raise DataError(f"data.source='{uri}' is empty: it has 0 rows; name one that has some")
    size = sum(column.nbytes for column in items.read([0]).values())
    step = max(1, BLOCK_BYTES // max(size, 1))

    def read(number: int) -> Iterator[Block]:
        yield items.read(range(len(items))[number * step : (number + 1) * step])

    chunks = Chunks(-(-len(items) // step), read)
    part = Part(chunks.blocks, chunks=lambda: chunks)
    return Source(uri, "indexed", (part,), nbytes=size * len(items), is_ready=True)


def _ray_blocks(dataset: Any) -> Iterator[Block]:
    dataset.context.execution_options.preserve_order = True
    for table in dataset.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow"):
        yield table_to_block(table)
