"""Arrow tables and other columns become NumPy arrays."""

from typing import Any

import numpy as np
import pyarrow as pa

from shoal.data.sources.base import Block
from shoal.errors import DataError


def table_to_block(table: pa.Table) -> Block:
    """Turn an Arrow table into arrays: missing numbers are NaN, missing texts None."""
    return {name: _column(table.column(name)) for name in table.column_names}


def _column(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):  # chat messages
        return np.asarray(column.to_pandas())
    return to_array(_plain(column).to_pandas(date_as_object=False))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def to_array(column: Any) -> np.ndarray:
    """Turn a pandas column into an array; lists of one length become a tensor [rows, ...]."""
    if str(column.dtype) in ("category", "string", "str"):
        return np.asarray(column.astype(object).where(column.notna(), None), dtype=object)
    if column.dtype.kind == "M":
        naive = (
            column.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(column.dtype, "tz", None) else column
        )
        return np.asarray(naive.to_numpy(dtype="datetime64[ns]"))
    if hasattr(column.dtype, "na_value") and column.dtype.kind in "iufb" and column.isna().any():
        return np.asarray(column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan))
    array = np.asarray(column.to_numpy())
    first = next((item for item in array[:100] if item is not None), None) if array.dtype == object else None
    if isinstance(first, np.ndarray | list):
        try:
            return np.stack([np.asarray(item) for item in array])
        except ValueError:
            name = column.name
            raise DataError(
                f"column '{name}' holds lists of different lengths: make them equally long, or drop it"
            ) from None
    return array
