"""Reads `package.module:function`: whatever data a user's own function returns."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from shoal.config.import_path import find
from shoal.config.objects import is_code
from shoal.config.secrets import reveal
from shoal.data.packing import nbytes_of
from shoal.data.random_state import seeded
from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sampler import TRAIN, split_named
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import IN_DRIVER_BYTES, Block, Chunks, Part, Source, in_memory_source
from shoal.data.sources.forms import columns_of, is_table_like, rows_of, splits_of
from shoal.data.sources.huggingface import is_loaded_set, source_of_loaded
from shoal.data.sources.items import DATA_SEED, Items, first_difference, have_draws, is_table
from shoal.data.sources.stream import is_stream, read_stream
from shoal.errors import DataError, UserError

BLOCK_BYTES = 32 << 20  # of a map-style dataset read at a time
BATCH_ROWS = 1 << 16  # of a Ray Dataset read at a time
CALLED_TWICE_S = 2.0  # a function that returns within this time is called again, to compare
COMPARED_BYTES = 64 << 20

Sample = Callable[[], list[Block]]


@dataclass(frozen=True)
class _Opened:
    """A source, and rows of it that must be the same whenever the function is called; None: they are not compared."""

    source: Source
    sample: Sample | None


def source_from_value(uri: str, value: Any) -> Source:
    """Wrap what a user's function returned: a frame, arrays, a torch Dataset, a Ray Dataset, or a dict of splits.

    Raises:
        DataError: it is something else, or has no rows; the message says what to return instead.
    """
    return _open(uri, value).source


def is_ray_dataset(value: Any) -> bool:
    return any(base.__module__.startswith("ray.data") for base in type(value).__mro__)


def open_function(uri: str, options: ReadOptions = DETECTED) -> Source:
    """Call a user's function `package.module:function?name=value&...` and wrap what it returns; data are wrapped as is.

    torch, NumPy and `random` are seeded meanwhile, with the same seed in every run: it returns the same rows again.

    Raises:
        UserError: it cannot be imported, or raises.
        DataError: it returns something that is not data, or other rows when it is called again.
    """
    path, _, query = reveal(uri).partition("?")
    found = find(path, "data.source")
    arguments = {name: _literal(text) for name, text in parse_qsl(query)}

    def call() -> Any:
        if not is_code(found):  # data that were passed from Python
            return found
        with seeded(DATA_SEED):
            return found(**arguments)

    started = time.monotonic()
    try:
        value = call()
    except Exception as error:
        raise UserError(
            f"data.source='{uri}' raised {type(error).__name__}: {error}: fix the function "
            "(SHOAL_TRACEBACK=1 shows where)"
        ) from error
    seconds = time.monotonic() - started
    opened = _open(uri, value)
    if opened.sample and seconds < CALLED_TWICE_S and opened.source.nbytes <= COMPARED_BYTES:
        with contextlib.suppress(
            ImportError, OSError, RuntimeError, MemoryError
        ):  # it may be called only once
            _compare(uri, opened.sample, _open(uri, call()).sample)
    return opened.source


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _compare(uri: str, sample: Sample, again: Sample | None) -> None:
    """Refuse a function that returned other rows when it was called again."""
    for one, other in zip(sample(), again() if again else [], strict=True):
        odd = first_difference(one, other)
        if odd:
            raise DataError(
                f"data.source='{uri}' returns other rows when it is called again ('{odd[0]}' differs), though torch, "
                "numpy.random and random begin at the same seed: draw from these, or from "
                "numpy.random.default_rng(0), and use no time, counter or set order"
            )


def _open(uri: str, value: Any, may_be_empty: bool = False) -> _Opened:
    splits = splits_of(uri, value)
    if splits is not None:
        return _open_splits(uri, splits)
    if is_ray_dataset(value):
        part = Part(lambda: _ray_blocks(value), dataset=value)
        return _Opened(Source(uri, "ray", (part,), nbytes=IN_DRIVER_BYTES + 1), None)
    if is_loaded_set(value):
        return _Opened(source_of_loaded(uri, value), None)
    if is_table_like(value):
        block, notes = columns_of(uri, value)
        if not may_be_empty and not any(map(len, block.values())):
            raise DataError(
                f"data.source='{uri}' is empty: it has 0 rows and {len(block)} columns; return some"
            )
        return _Opened(replace(in_memory_source(uri, block), notes=notes), lambda: [block])
    if is_stream(value):
        started = time.monotonic()
        opened = _open_items(uri, Items(uri, read_stream(uri, value)))
        return opened if time.monotonic() - started < CALLED_TWICE_S else replace(opened, sample=None)
    return _open_items(uri, Items(uri, rows_of(uri, value)))


def _open_splits(uri: str, splits: list[tuple[str, Any]]) -> _Opened:
    """Join the sources of (name, value) of splits."""
    opened = []
    for name, value in splits:
        try:
            split = split_named(name)
            # A held-out split without rows is refused later, where it is known whether one is asked for.
            opened.append((split, _open(uri, value, may_be_empty=split != TRAIN)))
        except DataError as error:
            raise DataError(f"split '{name}': {error}") from error
    samples = [one.sample for _, one in opened]
    source = Source(
        uri,
        "splits",
        tuple(replace(part, split=split) for split, one in opened for part in one.source.parts),
        nbytes=sum(one.source.nbytes for _, one in opened),
        is_ready=next(one.source.is_ready for split, one in opened if split == TRAIN),
        parts_of_items=next(one.source.parts_of_items for split, one in opened if split == TRAIN),
        notes=tuple(dict.fromkeys(note for _, one in opened for note in one.source.notes)),
    )
    if None in samples:
        return _Opened(source, None)
    return _Opened(source, lambda: [block for sample in samples if sample for block in sample()])


def _open_items(uri: str, items: Items) -> _Opened:
    """Wrap a map-style torch Dataset: its items are what the model takes, unless they are records."""
    if len(items) == 0:
        raise DataError(f"data.source='{uri}' is empty: it has 0 rows; name one that has some")
    drawn = items if have_draws(items) else None
    rows = items.sample()
    found = items.read(rows)
    size = sum(map(nbytes_of, found.values())) // len(rows)
    step = max(1, BLOCK_BYTES // max(size, 1))

    def read(number: int) -> Iterator[Block]:
        yield items.read(range(len(items))[number * step : (number + 1) * step])

    chunks = Chunks(-(-len(items) // step), read)
    part = Part(chunks.blocks, chunks=lambda: chunks, drawn=drawn)
    source = Source(
        uri,
        "indexed",
        (part,),
        nbytes=size * len(items),
        is_ready=not is_table(items.parts, found),
        parts_of_items=items.parts,
    )
    # How many rows are sampled depends on how fast they are; the first and the last always are.
    return _Opened(source, lambda: [{name: column[[0, -1]] for name, column in found.items()}])


def _ray_blocks(dataset: Any) -> Iterator[Block]:
    dataset.context.execution_options.preserve_order = True
    for table in dataset.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow"):
        yield table_to_block(table)
