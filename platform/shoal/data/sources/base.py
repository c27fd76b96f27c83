"""A source of rows: blocks that are read in a fixed order, and the fingerprint of their content.

Depends on files and file systems alone; independent of what the columns mean.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from pyarrow import fs as arrow_fs

from shoal.data.audio import AudioFormat
from shoal.data.packing import is_ragged
from shoal.data.sampler import VALIDATION
from shoal.data.template import Template
from shoal.errors import DataError, nearest

Block = dict[str, np.ndarray]
Result = TypeVar("Result")

# The driver's checks read a source up to this size as a whole, so that a problem is an error before anything is
# started. The driver then sends the rows to the workers, rather than having them read a second time.
IN_DRIVER_BYTES = 256 << 20
FILE_SCHEMES = ("csv", "parquet", "json", "npz")  # whose readers leave out the columns that are dropped
HASHED_BYTES = 1 << 30  # of larger files only names, sizes and times are hashed
READ_BYTES = 1 << 20  # of a file hashed at a time


class OtherTypesError(DataError):
    """A cell is not of the type that samples of its column show; `relearn` of the part finds what holds for all."""

    def __init__(self, uri: str, file: str, column: str) -> None:
        super().__init__(
            f"column '{column}' of '{file}' holds cells of another type than samples of data.source='{uri}' show: read "
            f"it again, or set data.columns={{{column}: text}}"
        )
        self.file, self.column = file, column
        self._arguments = (uri, file, column)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), self._arguments


@dataclass(frozen=True)
class Chunks:
    """Rows in chunks that any process can read by itself; `read` takes a chunk's number, and can be pickled."""

    count: int
    read: Callable[[int], Iterator[Block]]

    def blocks(self) -> Iterator[Block]:
        """Read all chunks, in order."""
        for number in range(self.count):
            yield from self.read(number)


class DrawnRows(Protocol):
    """Rows that hold random numbers, and others each time they are read with another seed."""

    def __len__(self) -> int: ...

    def read(self, rows: Iterable[int], seed: int) -> Block:
        """Return some rows as drawn with a seed, from 0 to below 2**62."""
        ...


@dataclass(frozen=True)
class Part:
    """Rows that are read in one order.

    `chunks`, `dataset` and `encoded` say how a cluster reads the same rows in the same order; without them, this
    process reads them for it.

    Attributes:
        read: all rows, in this process.
        split: that the source itself states for these rows; None: it states none.
        paths: the files, for the file schemes.
        chunks: made when the cluster reads them.
        dataset: a Ray Dataset.
        encoded: another part, whose blocks the function decodes.
        drawn: the rows, where they hold random numbers; `read` draws them once.
        relearn: how to read on after an `OtherTypesError` of a chunk: `chunks` is then asked for again.
    """

    read: Callable[[], Iterator[Block]]
    split: str | None = None
    paths: tuple[str, ...] = ()
    chunks: Callable[[], Chunks] | None = None
    dataset: Any = None
    encoded: "tuple[Part, Callable[[Block], Iterator[Block]]] | None" = None
    drawn: DrawnRows | None = None
    relearn: Callable[[OtherTypesError], None] | None = None


def read_again(read: Callable[[], Result]) -> Result:
    """Call a function that reads a whole source, again where cells are not of the types that samples show.

    The blocks that were read before have the types of the samples, and those behind would have others.
    """
    while True:
        # Each time, at least one more column is known to hold text.
        with contextlib.suppress(OtherTypesError):
            return read()


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        uri: as the user wrote it.
        scheme: the kind of reader.
        parts: rows in order, one part for each split that the source states.
        nbytes: estimated size, before reading.
        is_ready: the features are what the model takes; nothing is standardized.
        digest: the fingerprint, where the reader has its own; None: it is computed.
        tokenizer: the tokenizer of rows of tokens, as JSON.
        image_bits: that values of its 16-bit images use.
        audio: how its recordings became spectrograms.
        notes: a line for each thing that was detected and may be wrong, e.g. how a file is read.
        parts_of_items: which columns each named part of an item is made of; None: its columns are in no tree.
        categories: names of the classes of boxes, by number; empty where rows are no images with boxes.
    """

    uri: str
    scheme: str
    parts: tuple[Part, ...]
    nbytes: int
    is_ready: bool = False
    digest: str | None = None
    tokenizer: str | None = None
    image_bits: int | None = None
    audio: AudioFormat | None = None
    notes: tuple[str, ...] = ()
    parts_of_items: dict[str, Template] | None = None
    categories: tuple[str, ...] = ()
    _cache: dict[int, list[Block]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_small(self) -> bool:
        """Whether this process may hold it as a whole."""
        return self.nbytes <= IN_DRIVER_BYTES

    @property
    def has_validation(self) -> bool:
        """Whether the source itself states a validation split."""
        return self.states(VALIDATION)

    def states(self, split: str) -> bool:
        """Whether the source itself says which rows a split has."""
        return any(part.split == split for part in self.parts)

    def blocks(self, split: str | None = None) -> Iterator[tuple[str | None, Block]]:
        """Yield (split or None, rows) in the source's order; a small source is read once and cached.

        Args:
            split: read only the rows that the source states for it.
        """
        for number, part in enumerate(self.parts):
            if split is not None and part.split != split:
                continue
            if not self.is_small:
                yield from ((part.split, block) for block in part.read())
                continue
            if number not in self._cache:
                self._cache[number] = list(part.read())
            yield from ((part.split, block) for block in self._cache[number])

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the content, to tell when the data under a run has changed."""
        if self.digest:
            return self.digest
        hasher = hashlib.sha256(self.scheme.encode())
        hasher.update("\x1f".join(self.categories).encode())
        if any(part.paths for part in self.parts):
            _hash_files(hasher, self.parts)
        elif self.is_small:
            for split, block in self.blocks():
                _hash_block(hasher, split, block)
        else:
            hasher.update(f"{self.uri} {self.nbytes}".encode())
        return hasher.hexdigest()[:16]


def check_column(uri: str, key: str, column: str, block: Block) -> None:
    """Refuse a column that a config key names and a block does not have.

    Raises:
        DataError: it has no such column.
    """
    if column not in block:
        raise DataError(
            f"{key}='{column}' is not a column of '{uri}'{nearest(column, block)}: "
            f"its columns are {', '.join(list(block)[:20])}"
        )


def filesystem_of(path: str) -> tuple[arrow_fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside it."""
    if "://" in path:
        return arrow_fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    return arrow_fs.LocalFileSystem(), os.path.abspath(path)


def file_size(path: str) -> int:
    filesystem, inner = filesystem_of(path)
    return int(filesystem.get_file_info(inner).size or 0)


def in_memory_source(uri: str, block: Block) -> Source:
    nbytes = sum(column.nbytes for column in block.values())
    return Source(uri, "memory", (Part(lambda: iter([block])),), nbytes=min(nbytes, IN_DRIVER_BYTES))


def _hash_files(hasher: Any, parts: tuple[Part, ...]) -> None:
    paths = [path for part in parts for path in part.paths]
    is_small = sum(file_size(path) for path in paths) <= HASHED_BYTES
    hasher.update("".join(f"{part.split} {len(part.paths)} " for part in parts if part.split).encode())
    for path in paths:
        filesystem, inner = filesystem_of(path)
        info = filesystem.get_file_info(inner)
        hasher.update(f"{os.path.basename(path)} {info.size}".encode())
        if is_small:
            with filesystem.open_input_stream(inner) as stream:
                while chunk := stream.read(READ_BYTES):
                    hasher.update(chunk)
        else:
            hasher.update(str(info.mtime_ns).encode())


def _hash_block(hasher: Any, split: str | None, block: Block) -> None:
    for name, column in block.items():
        hasher.update(f"{split} {name} {column.dtype} {column.shape}".encode())
        if is_ragged(column):
            for array in column:
                hasher.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        elif column.dtype == object:
            hasher.update("\x1f".join(map(str, column)).encode())
        else:
            hasher.update(np.ascontiguousarray(column).tobytes())
