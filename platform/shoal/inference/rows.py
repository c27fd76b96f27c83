"""What a caller of `Predictor.predict` passes becomes columns, and columns become what such a caller would pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shoal.data.audio import AudioFormat
from shoal.data.packing import as_ragged, is_ragged
from shoal.data.preprocessing import Column, Transform
from shoal.data.sources.arrow import to_array
from shoal.data.sources.base import Block
from shoal.data.sources.values import stack_values
from shoal.data.template import Template, names
from shoal.data.text import TOKENS
from shoal.data.tokenizer import tokenizer_from_json
from shoal.data.values import as_numbers, as_texts
from shoal.errors import DataError
from shoal.inference.recordings import as_base64, as_waves

TEXT = "text"  # the column that a model of text takes
# MLflow describes cells of these types alone, which hold the values of the others.
DESCRIBED = dict.fromkeys(("int8", "uint8", "int16", "uint16"), "int32") | {
    "uint32": "int64",
    "float16": "float32",
}


def as_block(data: Any, transform: Transform) -> Block:
    """Turn the input of `Predictor.predict` into columns.

    Raises:
        DataError: items do not have the arrays that the model takes.
    """
    if transform.audio is not None:
        return _recordings(data, transform.columns[0].name, transform.audio)
    if transform.input_tree is not None:
        return _columns_of_tree(data, transform.input_tree)
    if isinstance(data, pd.DataFrame):
        return {str(name): to_array(data[name]) for name in data.columns}
    if isinstance(data, Mapping):
        return {str(name): np.asarray(column) for name, column in data.items()}
    return {transform.columns[0].name: np.asarray(data)}


def _recordings(data: Any, column: str, audio: AudioFormat) -> Block:
    """Return the waves of a frame, of a dict of columns, or of a list of recordings."""
    is_table = isinstance(data, pd.DataFrame | Mapping)
    if is_table and column not in data:
        raise DataError(
            f"column '{column}' of recordings is missing: the columns are {', '.join(map(str, data))}"
        )
    # MLflow makes one row of a dict of lists whose column holds texts, {"audio": [...]}.
    cells = [one for cell in (data[column] if is_table else data) for one in _encoded_in(cell)]
    return {column: as_waves(cells, audio)}


def _encoded_in(cell: Any) -> list[Any]:
    """Return the encoded recordings in a list of them, or what is no such list as it is."""
    are_encoded = isinstance(cell, list) and cell and all(isinstance(one, str | bytes) for one in cell)
    return cell if are_encoded else [cell]


def _columns_of_tree(data: Any, tree: Template) -> Block:
    """Return the arrays of a frame, of a tree of arrays, or of a list of items."""
    if isinstance(data, pd.DataFrame):
        return {str(name): _stacked(str(name), list(data[name])) for name in data.columns}
    columns: dict[str, Any] = {}
    if isinstance(data, Mapping) and set(names(tree)) <= set(data):
        columns = {str(name): values for name, values in data.items()}
    elif isinstance(data, Mapping):
        _put(tree, data, columns)
    elif isinstance(data, Sequence):
        rows: list[dict[str, Any]] = [{} for _ in data]
        for row, item in zip(rows, data, strict=True):
            _put(tree, item, row)
        columns = {name: [row[name] for row in rows] for name in names(tree)}
    else:
        columns = dict.fromkeys(names(tree), data)  # of one array
    return {name: _stacked(name, values) for name, values in columns.items()}


def _put(tree: Template, item: Any, found: dict[str, Any]) -> None:
    """Put the arrays of an item into `found`, by column.

    Raises:
        DataError: the item has another form than those of training.
    """
    if isinstance(tree, str):
        found[tree] = item
        return
    try:
        parts = [item[name] for name in tree] if isinstance(tree, dict) else list(item)
        branches = list(tree.values()) if isinstance(tree, dict) else tree
        for branch, part in zip(branches, parts, strict=True):
            _put(branch, part, found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"an item of type {type(item).__name__} does not have the parts that the model takes, "
            f"{', '.join(names(tree))} ({type(error).__name__}: {error}): pass items as the data set returned them, "
            "without the label"
        ) from None


def _stacked(name: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    rows = list(values)
    return stack_values(f"'{name}' of row", range(len(rows)), rows, may_be_ragged=True)


def as_rows(block: Block, transform: Transform) -> Any:
    """Turn columns into an input of `Predictor.predict`: texts, an array for one tensor column, else a frame."""
    if transform.tokenizer:
        tokenizer = tokenizer_from_json(transform.tokenizer)
        return pd.DataFrame({TEXT: [tokenizer.decode(row) for row in block[TOKENS]]})
    columns = transform.columns
    if transform.audio is not None:
        encoded = [as_base64(wave, transform.audio.rate) for wave in block[columns[0].name]]
        return pd.DataFrame({columns[0].name: encoded})
    if len(columns) == 1 and columns[0].kind in ("tensor", "ready") and transform.input_tree is None:
        return block[columns[0].name]
    plain = {column.name: _plain(column, block[column.name]) for column in columns}
    return pd.DataFrame({name: list(values) if values.ndim > 1 else values for name, values in plain.items()})


def _plain(column: Column, values: np.ndarray) -> np.ndarray:
    """Return a column's values in types that MLflow can describe, which the transform takes for the same."""
    is_odd = values.dtype.kind in "mcO" or values.dtype == np.uint64
    if column.kind == "number" and column.reading is None and is_odd:
        return as_numbers(values)
    if column.kind in ("category", "hashed", "words") and values.dtype.kind not in "US":
        return as_texts(values, column.name)
    if is_ragged(values):
        return as_ragged([_described(array) for array in values])
    return _described(values) if column.kind == "ready" or values.dtype == np.float16 else values


def _described(values: np.ndarray) -> np.ndarray:
    return values.astype(DESCRIBED.get(str(values.dtype), values.dtype), copy=False)


def check_names(transform: Transform) -> None:
    """Refuse columns that a saved model could not name in its signature.

    Raises:
        DataError: a column has a blank name.
    """
    for number, column in enumerate(transform.columns, 1):
        if not column.name.strip():
            raise DataError(
                f"feature column {number} of {len(transform.columns)} has a blank name ('{column.name}'), often an "
                "index that was written with the rows: give it a name, or leave the column out of the data"
            )
