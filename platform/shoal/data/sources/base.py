"""A source of rows: blocks that are read in a fixed order, and the fingerprint of what they hold."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from pyarrow import fs as arrow_fs

Block = dict[str, np.ndarray]

# A source up to this size is read whole by the driver's checks, so that what they find is an error before
# anything is started; the rows then go to the workers from there rather than being read a second time.
IN_DRIVER_BYTES = 256 << 20
HASHED_BYTES = 1 << 30

FILE_SCHEMES = ("csv", "parquet", "json", "npz")
SCHEMES = ("sklearn", *FILE_SCHEMES, "text", "images", "huggingface", "synthetic")


@dataclass(frozen=True)
class Part:
    """Rows that are read in one order; `split` is set where the source itself says which split they are."""

    read: Callable[[], Iterator[Block]]
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        uri: as the user wrote it.
        scheme: which reader it is for.
        nbytes: estimated size, before reading.
        paths: the files, for the file schemes.
        is_ready: the features are what the model takes; nothing is to be standardised.
        value: what a user's function returned, for those that only Ray Data can read.
        tokenizer: the JSON of what made its tokens, where the rows are text.
    """

    uri: str
    scheme: str
    parts: tuple[Part, ...]
    nbytes: int
    paths: tuple[str, ...] = ()
    is_ready: bool = False
    value: Any = None
    digest: str | None = None
    tokenizer: str | None = None
    _cache: dict[int, list[Block]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_small(self) -> bool:
        """Whether this process may hold it whole."""
        return self.nbytes <= IN_DRIVER_BYTES

    def blocks(self) -> Iterator[tuple[str | None, Block]]:
        """Yield (split or None, rows) in the source's order; a small source is read once and kept."""
        for number, part in enumerate(self.parts):
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
        if self.paths:
            _hash_files(hasher, self.paths)
        elif self.is_small:
            for split, block in self.blocks():
                _hash_block(hasher, split, block)
        else:
            hasher.update(f"{self.uri} {self.nbytes}".encode())
        return hasher.hexdigest()[:16]


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


def _hash_files(hasher: Any, paths: tuple[str, ...]) -> None:
    is_small = sum(file_size(path) for path in paths) <= HASHED_BYTES
    for path in paths:
        filesystem, inner = filesystem_of(path)
        info = filesystem.get_file_info(inner)
        hasher.update(f"{os.path.basename(path)} {info.size}".encode())
        if is_small:
            with filesystem.open_input_stream(inner) as stream:
                while chunk := stream.read(1 << 20):
                    hasher.update(chunk)
        else:
            hasher.update(str(info.mtime_ns).encode())


def _hash_block(hasher: Any, split: str | None, block: Block) -> None:
    for name, column in block.items():
        hasher.update(f"{split} {name} {column.dtype} {column.shape}".encode())
        if column.dtype == object:
            hasher.update("\x1f".join(map(str, column)).encode())
        else:
            hasher.update(np.ascontiguousarray(column).tobytes())
