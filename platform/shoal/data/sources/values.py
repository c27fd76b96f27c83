"""What a user's own code holds in one column or one item becomes an array.

It knows tensors, images, sparse matrices, columns of frames and lists; independent of splits and sources.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.data.images import item_pixels
from shoal.data.packing import as_ragged
from shoal.data.sources.arrow import table_to_block, to_array
from shoal.errors import DataError

NONE = np.array(None, dtype=object)
DENSE_BYTES = 256 << 20  # of a sparse matrix when it is stored with its zeros


def as_array(where: str, value: Any) -> np.ndarray:
    """Return a value as an array of numbers in this machine's byte order, of texts, times or other objects.

    Tensors leave their graph and their device, images become [channels, height, width], durations seconds.

    Args:
        where: what holds the value, to begin a message.
        value: a scalar, tensor, image, list, column of a frame, ...

    Raises:
        DataError: it is no array, or its parts have different shapes.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return _of_tensor(where, value)
    if isinstance(value, Mapping | set | frozenset):
        raise DataError(f"{where} is a {type(value).__name__}: it must be a number, a text or an array")
    package = type(value).__module__.partition(".")[0]
    if package == "PIL":
        return item_pixels(value)
    if package == "scipy" and hasattr(value, "toarray"):
        return _dense(where, value)
    if package in ("pandas", "polars", "pyarrow"):
        return _of_column(where, value)
    if isinstance(value, np.ma.MaskedArray):
        return plain(where, _filled(value))
    if isinstance(value, list | tuple):
        return _of_sequence(where, value)
    try:
        return plain(where, np.asarray(value))
    except DataError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is a {type(value).__name__}, which is no array ({error})") from None


def plain(where: str, array: np.ndarray) -> np.ndarray:
    """Return an array in types that every reader knows."""
    kind = array.dtype.kind
    if kind == "O":
        return _of_objects(where, array)
    if kind == "m":
        return np.where(np.isnat(array), np.nan, array / np.timedelta64(1, "s"))
    if kind == "S":
        return _decoded(array)
    if kind == "T":  # texts of any length
        return array.astype(object)
    if kind == "c":
        raise DataError(f"{where} holds complex numbers: split them into real and imaginary parts")
    if kind == "V":
        raise DataError(f"{where} holds records of type {array.dtype}: make each field a column")
    if array.dtype == np.longdouble:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def stack_values(
    where: str, rows: Sequence[int], values: Iterable[Any], may_be_ragged: bool = False
) -> np.ndarray:
    """Stack values of one shape to [n, ...]; missing ones are None.

    Args:
        where: what holds them; messages add the row.
        rows: the number of each row, for messages.
        values: as `as_array` takes them.
        may_be_ragged: arrays, but no images, whose first dimensions differ become an array of arrays.

    Raises:
        DataError: they have different shapes; the message has two of them.
    """
    values = list(values)
    if any(map(_is_list_of_mappings, values)):  # chat messages
        return _objects(values)
    arrays = [
        NONE if value is None else as_array(f"{where} {row}", value)
        for row, value in zip(rows, values, strict=True)
    ]
    first = arrays[0]
    if may_be_ragged and _differ_in_length(arrays) and not any(map(is_image, values)):
        return as_ragged(arrays)
    for row, array in zip(rows, arrays, strict=True):
        if array.shape != first.shape or (first.ndim and array is NONE):
            odd, usual = ("None" if one is NONE else f"of shape {list(one.shape)}" for one in (array, first))
            raise DataError(
                f"{where} {row} is {odd}, that of {rows[0]} {usual}: all must have one shape; pad, crop or resize "
                "them, or leave rows without a value out"
            )
    if len({array.dtype.kind in "OU" for array in arrays}) == 1:
        return np.stack(arrays)
    column = np.empty((len(arrays), *first.shape), dtype=object)  # numbers beside texts or None
    for number, array in enumerate(arrays):
        column[number] = array.item() if array.ndim == 0 else array
    return column


def _differ_in_length(arrays: Sequence[np.ndarray]) -> bool:
    """Whether arrays of numbers differ in their first dimension alone."""
    if not all(array.ndim and array.dtype.kind in "biuf" for array in arrays):
        return False
    return len({array.shape for array in arrays}) > 1 == len({array.shape[1:] for array in arrays})


def is_image(value: Any) -> bool:
    return type(value).__module__.startswith("PIL")


def _of_tensor(where: str, tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.is_nested:
        raise DataError(f"{where} is a nested tensor, whose parts have different lengths: pad them")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # bfloat16 and smaller ones, which NumPy does not have
    return plain(where, tensor.cpu().resolve_conj().resolve_neg().numpy())


def _of_column(where: str, value: Any) -> np.ndarray:
    import pandas as pd
    import pyarrow as pa

    if isinstance(value, pd.DataFrame):
        return plain(where, value.to_numpy())
    if type(value).__module__.startswith("polars"):
        value = value.to_arrow()
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return plain(where, table_to_block(pa.table({"": value}))[""])
    if isinstance(value, pa.Scalar):
        return as_array(where, value.as_py())
    if pd.api.types.is_scalar(value):  # a Timestamp, Timedelta, NaT or NA
        return column_to_array(where, pd.Series([value]))[0:1].reshape(())
    return column_to_array(where, pd.Series(value))


def column_to_array(where: str, column: Any) -> np.ndarray:
    """Return a pandas column; the values of a category are texts, so that numbers in it are no quantities."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return to_array(column)
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if isinstance(column.dtype, pd.SparseDtype):
        column = column.sparse.to_dense()
    first = next(iter(column.dropna()), None) if column.dtype == object else None
    if _is_list_of_mappings(first):  # chat messages
        return _objects(list(column))
    return plain(where, to_array(column))


def _of_sequence(where: str, values: Sequence[Any]) -> np.ndarray:
    import pandas as pd
    import torch

    first = next((value for value in values if value is not None), None)
    if isinstance(first, Mapping) or _is_list_of_mappings(first):
        return _objects(values)
    if isinstance(first, torch.Tensor | np.ndarray) or type(first).__module__.startswith("PIL"):
        return _stack_rows(where, values)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # rows of several shapes
        return _stack_rows(where, values)
    if array.ndim == 1 and array.dtype.kind in "OU":
        # pandas knows missing values among texts and numbers, and Python's own times.
        array = to_array(pd.Series(list(values)))
    return plain(where, array)


def _of_objects(where: str, array: np.ndarray) -> np.ndarray:
    """Stack arrays inside an array of objects; other objects stay."""
    import torch

    if array.ndim == 0:
        item = array.item()
        if item is None or isinstance(item, str | bytes):
            return array
        made = np.asarray(item)
        return array if made.dtype == object else plain(where, made)
    first = next((value for value in array.flat if value is not None), None)
    is_rows = isinstance(first, np.ndarray | list | tuple | torch.Tensor) and not _is_list_of_mappings(first)
    return _stack_rows(where, array) if is_rows and array.ndim == 1 else array


def _stack_rows(where: str, values: Any) -> np.ndarray:
    return stack_values(f"{where}: row", range(len(values)), values)


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray) and len(value) > 0 and isinstance(value[0], Mapping)


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for number, value in enumerate(values):
        array[number] = value
    return array


def _dense(where: str, matrix: Any) -> np.ndarray:
    nbytes = math.prod(matrix.shape) * matrix.dtype.itemsize
    if nbytes > DENSE_BYTES:
        raise DataError(
            f"{where} is a sparse matrix {list(matrix.shape)}, {nbytes >> 20} MiB with its zeros: reduce its columns, "
            "e.g. by sklearn.decomposition.TruncatedSVD, or return float32 rows of a map-style Dataset"
        )
    return plain(where, np.asarray(matrix.toarray()))


def _filled(array: Any) -> np.ndarray:
    """Return a masked array with missing values where it is masked."""
    if not np.ma.is_masked(array):
        return np.asarray(array.data)
    if array.dtype.kind in "iub":
        return np.asarray(array.astype(np.float64).filled(np.nan))
    if array.dtype.kind in "fmM":
        return np.asarray(array.filled(np.nan if array.dtype.kind == "f" else "NaT"))
    return np.asarray(array.astype(object).filled(None))


def _decoded(array: np.ndarray) -> np.ndarray:
    """Return bytes as texts where all of them are UTF-8, else as they are."""
    try:
        texts = [value.decode() for value in array.ravel().tolist()]
    except UnicodeDecodeError:
        return array.astype(object)
    column = np.empty(len(texts), dtype=object)
    column[:] = texts
    return column.reshape(array.shape)
