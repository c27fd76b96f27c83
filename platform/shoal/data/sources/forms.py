"""The forms in which a user's function returns data: told apart, turned into columns, or refused with a remedy.

It knows values alone; independent of how rows are read and of what they mean.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from shoal.data.sampler import SPLIT_NAMES, TRAIN, split_named
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import Block
from shoal.data.sources.items import FEATURES, TARGET
from shoal.data.sources.values import as_array, column_to_array, plain
from shoal.errors import DataError, nearest

ACCEPTED = (
    "a pandas frame (or polars, Arrow), a dict of columns, a pair of arrays (X, y), a map-style torch Dataset (with "
    "__len__ and __getitem__), a Ray Dataset, or a dict of these by split"
)
BUNCH = {"data", "target"}  # the keys of what scikit-learn's loaders return


def splits_of(uri: str, value: Any) -> list[tuple[str, Any]] | None:
    """Return (name, value) of the splits that a value states; None: it states none.

    Raises:
        DataError: there is none to train on, or other names lie beside the splits.
    """
    if _is_pair_of_pairs(value):
        return [("train", value[0]), ("test", value[1])]  # as Keras' loaders return them
    if not isinstance(value, Mapping) or not value or _package(value) == "datasets":
        return None
    named = [name for name in value if split_named(name)]
    if not named:
        return None
    odd = [str(name) for name in value if not split_named(name)]
    if odd and not all(_holds_rows(part) for part in value.values()):
        return None  # columns, one of which is called as a split
    if odd:
        raise DataError(
            f"data.source='{uri}' returned '{odd[0]}'{nearest(odd[0], SPLIT_NAMES)} beside the splits "
            f"{', '.join(map(str, named))}: name it train, validation or test, or leave it out"
        )
    if not any(split_named(name) == TRAIN for name in named):
        raise DataError(
            f"data.source='{uri}' returned splits {', '.join(map(str, named))}: 'train' must be among them"
        )
    return [(str(name), part) for name, part in value.items()]


def is_table_like(value: Any) -> bool:
    """Whether `columns_of` takes a value."""
    return (
        isinstance(value, Mapping)
        or _is_frame(value)
        or _is_pair_of_arrays(value)
        or (isinstance(value, np.ndarray) and value.dtype.names is not None)
    )


def columns_of(uri: str, value: Any) -> tuple[Block, tuple[str, ...]]:
    """Turn a frame, a dict of columns, a pair of arrays or a structured array into columns, and notes on them.

    Raises:
        DataError: columns have one name or different lengths.
    """
    notes: tuple[str, ...] = ()
    if isinstance(value, tuple | list):
        columns = _pair(uri, *value)
    elif isinstance(value, np.ndarray):
        columns = [(name, plain(_where(uri, name), value[name])) for name in value.dtype.names or ()]
    elif isinstance(value, Mapping):
        columns = _bunch(uri, value) if set(value) >= BUNCH and "DESCR" in value else _mapping(uri, value)
    else:
        columns, notes = _frame(uri, value)
    return _checked(uri, columns), notes


def rows_of(uri: str, value: Any) -> Any:
    """Return a map-style dataset or a list of items as it is.

    Raises:
        DataError: it is neither; the message says what to return instead.
    """
    returned = f"data.source='{uri}' returned"
    refuse = _remedy(value)
    if refuse:
        raise DataError(f"{returned} {refuse}")
    if isinstance(value, tuple | list) and value and all(map(_is_set, value)):
        kinds = ", ".join(type(part).__name__ for part in value[:4])
        raise DataError(
            f"{returned} a {type(value).__name__} of {len(value)} ({kinds}): return a dict of them by split, e.g. "
            "{'train': ..., 'validation': ..., 'test': ...}"
        )
    if isinstance(value, tuple | list) and len(value) in (4, 6) and all(map(_is_array, value)):
        raise DataError(
            f"{returned} {len(value)} arrays: return {{'train': (X_train, y_train), 'test': (X_test, y_test)}}"
        )
    if isinstance(value, np.ndarray) or _is_array(value):
        shape = list(getattr(value, "shape", ()))
        raise DataError(
            f"{returned} one {type(value).__name__} of shape {shape}: return (X, y), or a dict of columns with "
            "the label"
        )
    if (
        hasattr(value, "__getitem__")
        and hasattr(value, "__len__")
        and not isinstance(value, str | bytes | bytearray)
    ):
        return value
    raise DataError(f"{returned} a {type(value).__name__}: return {ACCEPTED}")


def _remedy(value: Any) -> str | None:
    """Name a value that cannot be read row by row, with what to return instead; None: it may be."""
    kind, package = type(value).__name__, _package(value)
    bases = {f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__}
    if value is None:
        return f"a NoneType (does the function lack a return?): return {ACCEPTED}"
    if isinstance(value, type):
        return f"the class {value.__name__}: return an instance of it, {value.__name__}(...)"
    if "torch.utils.data.dataloader.DataLoader" in bases:
        return f"a {kind}: return the dataset that it loads, loader.dataset; data.global_batch_size sets the batch"
    if package == "tensorflow":
        return f"a TensorFlow {kind}: return list(dataset.unbatch().as_numpy_iterator())"
    if package == "dask":
        return f"a Dask {kind}: return frame.compute()"
    if package == "pyspark":
        return f"a Spark {kind}: return frame.toPandas()"
    if inspect.iscoroutine(value) or inspect.isasyncgen(value):
        return f"a {kind}: the function is async; make it a plain one"
    if isinstance(value, Iterator) or inspect.isgenerator(value):
        return f"a {kind}, which can be read once only: return list(...) of it"
    if callable(value) and not hasattr(value, "__getitem__"):
        return f"a {kind} that can be called: return what it returns"
    if isinstance(value, str | bytes):
        return (
            f"the text {str(value)[:60]!r}: return the data; a file is named by its scheme, e.g. "
            "data.source=csv:PATH"
        )
    return None


def _checked(uri: str, columns: list[tuple[str, np.ndarray]]) -> Block:
    names = [name for name, _ in columns]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise DataError(
            f"data.source='{uri}' returned {names.count(twice)} columns named '{twice}': rename them, or drop all "
            "but one"
        )
    for name, column in columns:
        if column.ndim == 0:
            raise DataError(
                f"data.source='{uri}' returned one value as column '{name}': return an array of rows"
            )
    lengths = {name: len(column) for name, column in columns}
    if len(set(lengths.values())) > 1:
        few = dict(list(lengths.items())[:10])
        raise DataError(f"data.source='{uri}' returned columns of different lengths {few}: rows must match")
    return dict(columns)


def _where(uri: str, name: object) -> str:
    return f"data.source='{uri}': column '{name}'"


def _mapping(uri: str, value: Mapping[Any, Any]) -> list[tuple[str, np.ndarray]]:
    columns = [(str(name), as_array(_where(uri, name), column)) for name, column in value.items()]
    return [(name, column[:, 0] if column.shape[1:] == (1,) else column) for name, column in columns]


def _bunch(uri: str, value: Mapping[Any, Any]) -> list[tuple[str, np.ndarray]]:
    """Return the columns of a scikit-learn Bunch."""
    if _is_frame(value["data"]):
        features = _frame(uri, value["data"])[0]
    else:
        data = as_array(_where(uri, "data"), value["data"])
        names = value.get("feature_names")
        if data.ndim != 2 or names is None or len(names) != data.shape[1]:
            features = [(FEATURES, data)]
        else:
            features = [(str(name), data[:, number]) for number, name in enumerate(names)]
    return [*features, (TARGET, as_array(_where(uri, TARGET), value["target"]))]


def _pair(uri: str, features: Any, label: Any) -> list[tuple[str, np.ndarray]]:
    """Return the columns of (X, y)."""
    columns = _frame(uri, features)[0] if _is_frame(features) else None
    if columns is None:
        columns = [(FEATURES, as_array(_where(uri, FEATURES), features))]
    if _is_frame(label):
        labels = _frame(uri, label)[0]
        if [name for name, _ in columns] == [name for name, _ in labels]:
            raise DataError(
                f"data.source='{uri}' returned two frames of the same columns: return them by split, "
                "{'train': ..., 'test': ...}"
            )
        if len(labels) != 1:
            raise DataError(
                f"data.source='{uri}' returned (X, y), and y has {len(labels)} columns: there must be one label per "
                "row; return one of them"
            )
        return [*columns, *labels]
    target = as_array(_where(uri, TARGET), label)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        raise DataError(
            f"data.source='{uri}' returned (X, y), and y has shape {list(target.shape)}: there must be one label per "
            "row; return one of its columns, or y.argmax(1) of one-hot rows"
        )
    name = getattr(label, "name", None)
    return [*columns, (name if isinstance(name, str) and name else TARGET, target)]


def _frame(uri: str, frame: Any) -> tuple[list[tuple[str, np.ndarray]], tuple[str, ...]]:
    """Return the columns of a frame of pandas, polars or Arrow, and notes."""
    import pyarrow as pa

    if _package(frame) == "polars":
        frame = (frame.collect() if hasattr(frame, "collect") else frame).to_arrow()
    if isinstance(frame, pa.RecordBatchReader):
        frame = frame.read_all()
    if isinstance(frame, pa.RecordBatch):
        frame = pa.Table.from_batches([frame])
    if not hasattr(frame, "iloc") and hasattr(frame, "to_pandas") and not isinstance(frame, pa.Table):
        frame = frame.to_pandas()
    if isinstance(frame, pa.Table):
        twice = next((name for name in frame.column_names if frame.column_names.count(name) > 1), None)
        if twice is None:
            return [
                (name, plain(_where(uri, name), column)) for name, column in table_to_block(frame).items()
            ], ()
        return [(name, np.empty(0)) for name in frame.column_names], ()
    names = [_flat_name(name) for name in frame.columns]
    columns = [
        (name, column_to_array(_where(uri, name), frame.iloc[:, number])) for number, name in enumerate(names)
    ]
    index = frame.index.name
    if index is None:
        return columns, ()
    return columns, (f"the frame's index '{index}' is left out: reset_index() makes it a column",)


def _flat_name(name: object) -> str:
    return "_".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _is_frame(value: Any) -> bool:
    if isinstance(value, type):
        return False
    if _package(value) == "polars":
        return hasattr(value, "collect") or hasattr(value, "columns")  # of a lazy frame they cost
    if _package(value) == "pyarrow":
        return hasattr(value, "schema") and (hasattr(value, "to_pandas") or hasattr(value, "read_all"))
    return hasattr(value, "iloc") and hasattr(value, "columns") and _package(value) not in ("dask", "pyspark")


def _is_array(value: Any) -> bool:
    """Whether a value is an array, a tensor, a sparse matrix or a column of a frame."""
    return not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype")


def _is_pair_of_arrays(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    features, label = value
    has_features = _is_frame(features) or (_is_array(features) and len(features.shape) > 0)
    is_label = _is_frame(label) or (_is_array(label) and len(label.shape) > 0)
    return has_features and (is_label or (isinstance(label, list) and len(label) == features.shape[0]))


def _is_pair_of_pairs(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, tuple) and _is_pair_of_arrays(part) for part in value)
        and all(len(part[0].shape) > 1 and part[0].shape[0] == part[1].shape[0] for part in value)
    )


def _holds_rows(value: Any) -> bool:
    """Whether a value is a set of rows with several columns, not one column of a set."""
    return _is_frame(value) or isinstance(value, Mapping) or _is_pair_of_arrays(value) or _is_set(value)


def _is_set(value: Any) -> bool:
    """Whether a value is a data set of torch, Ray, Hugging Face or TensorFlow, or a frame."""
    packages = ("torch.utils.data", "ray.data", "datasets", "tensorflow")
    return _is_frame(value) or any(base.__module__.startswith(packages) for base in type(value).__mro__)
