"""Reads NumPy files: the arrays of .npz files, and .npy files as arrays of their names."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.data.read_options import ReadOptions
from shoal.data.sampler import SPLITS, split_named
from shoal.data.sources.base import Block, Chunks
from shoal.data.sources.opening import File, open_bytes, open_plain
from shoal.data.sources.tables import check_names
from shoal.errors import DataError, nearest


def array_splits(options: ReadOptions) -> dict[str | None, dict[str, str]]:
    """Return `data.arrays` by split: {column: name of the array}; empty where there are none.

    Raises:
        DataError: some columns name a split and others do not.
    """
    found: dict[str | None, dict[str, str]] = {}
    for key, array in options.arrays:
        word, dot, column = key.partition(".")
        split = split_named(word) if dot else None
        found.setdefault(split, {})[column if split else key] = array
    if None in found and len(found) > 1:
        column = next(iter(found[None]))
        raise DataError(
            f"data.arrays names a split of some columns and none of '{column}': write e.g. train.{column} for each"
        )
    return {split: found[split] for split in (*SPLITS, None) if split in found}


def is_one_set(files: tuple[File, ...]) -> bool:
    """Whether the files are arrays of the same rows: .npy files."""
    return all(file.suffix == ".npy" for file in files)


def read_arrays(uri: str, files: tuple[File, ...], columns: dict[str, str], options: ReadOptions) -> Block:
    """Read the columns of one .npz file, or of .npy files whose names are those of the arrays.

    Raises:
        DataError: an array is missing, has no rows, holds objects, or is longer than another.
    """
    name = files[0].name if len(files) == 1 else os.path.dirname(files[0].name)
    where = f"'{name}' of data.source='{uri}'"
    arrays = _Arrays(files, where)
    if columns:
        block = {column: arrays.get(name, columns) for column, name in columns.items()}
    else:
        block = {name: arrays.get(name, columns) for name in arrays.names}
        if is_one_set(files) and len(files) == 1:
            block = _divided(files[0], next(iter(block.values())))
    block = _plain(block, where)
    lengths = {name: len(array) for name, array in block.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{where} holds arrays of different lengths {lengths}: rows must match; name the columns of each "
            "split, e.g. data.arrays={train.features: x_train, train.target: y_train}"
        )
    check_names(uri, list(block), options)
    dropped = {name for name, kind in options.columns if kind == "drop"}
    as_text = {name for name, kind in options.columns if kind in ("category", "text")}
    return {
        name: array.astype(str).astype(object) if name in as_text and array.ndim == 1 else array
        for name, array in block.items()
        if name not in dropped
    }


class _Arrays:
    """Arrays by name, read one at a time."""

    def __init__(self, files: tuple[File, ...], where: str) -> None:
        self._where = where
        self._files = {
            os.path.basename(file.name).split(".")[0]: file for file in files if file.suffix == ".npy"
        }
        self._npz: Any = None
        if not self._files:
            with _explained(where):
                self._npz = np.load(_open(files[0]), allow_pickle=False)
        self.names = list(self._files or self._npz.files)

    def get(self, name: str, columns: dict[str, str]) -> np.ndarray:
        if name not in self.names:
            raise DataError(
                f"data.arrays: '{name}' is not an array of {self._where}{nearest(name, self.names)}: its arrays are "
                f"{', '.join(self.names[:20])}"
            )
        with _explained(f"array '{name}' of {self._where}"):
            is_npz = self._npz is not None
            array = self._npz[name] if is_npz else np.load(_open(self._files[name]), allow_pickle=False)
        if np.ndim(array) == 0:
            raise DataError(
                f"array '{name}' of {self._where} is one value ({array!s:.40}), without rows: leave it out of the "
                "file, or name the columns, e.g. data.arrays={features: x, target: y}"
            )
        return np.asarray(array)


def _open(file: File) -> Any:
    """Open a file to read it from any place."""
    if file.is_plain:
        return open_plain(file.path)
    with open_bytes(file) as stream:
        return io.BytesIO(stream.read())


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an error of NumPy into one that names the array, the cause and the remedy."""
    try:
        yield
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{what} holds Python objects, which could run code when read: save it as numbers or texts, e.g. "
                "x.astype(float) or x.astype(str)"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in reason:
            reason = "it is no NumPy file"
        raise DataError(f"{what} does not read as npz ({reason}): save it with numpy.savez") from None


def _divided(file: File, array: np.ndarray) -> Block:
    """Return the columns of the one array of a .npy file."""
    if array.dtype.names:
        return {"array": array}
    if array.ndim == 2:
        return {f"column_{number + 1}": array[:, number] for number in range(array.shape[1])}
    raise DataError(
        f"'{file.name}' is one array of shape {array.shape}, without a label beside it: name a folder of .npy "
        "files, e.g. features.npy and target.npy, or a .npz file"
    )


def _plain(block: Block, where: str) -> Block:
    """Return structured arrays as columns, and all in the byte order of this machine."""
    plain: dict[str, np.ndarray] = {}
    for name, array in block.items():
        fields = array.dtype.names
        for one in fields or (None,):
            column = name if one is None else one if len(block) == 1 else f"{name}.{one}"
            if column in plain:
                raise DataError(f"{where} holds two columns named '{column}': rename one of them")
            plain[column] = _native(column, array if one is None else array[one], where)
    return plain


def _native(name: str, array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind in "cV" or array.dtype.hasobject:
        raise DataError(f"array '{name}' of {where} is of type {array.dtype}: save it as numbers or texts")
    if array.dtype.kind == "S":
        return np.asarray(np.char.decode(array, "utf-8", "replace").astype(object))
    if array.dtype.kind == "U":
        return array.astype(object)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@dataclass
class NpzReader:
    """The files of a source; each .npz file holds rows, and .npy files hold the columns of the same rows."""

    uri: str
    options: ReadOptions
    columns: dict[str, str]
    notes: tuple[str, ...] = ()

    def whole(self, files: tuple[File, ...]) -> Iterator[Block]:
        yield from self.chunks(files).blocks()

    def chunks(self, files: tuple[File, ...]) -> Chunks:
        """Return the files, each of which any process can read; .npy files are read together."""
        sets = [files] if is_one_set(files) else [(file,) for file in files]

        def read(number: int) -> Iterator[Block]:
            yield read_arrays(self.uri, sets[number], self.columns, self.options)

        return Chunks(len(sets), read)
