"""The forms in which a user's function returns data: read as they are meant, or refused with a remedy."""

import collections
import dataclasses
import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

from shoal.data.dataset_info import inspect_source
from shoal.data.random_state import seed_random_states
from shoal.data.sources import base
from shoal.data.sources import function as module
from shoal.data.sources.function import source_from_value
from shoal.data.sources.open import open_source
from shoal.errors import DataError, UserError

X = np.arange(12.0, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 0, 1])
FRAME = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "target": Y})
Point = collections.namedtuple("Point", "x y target")


@dataclasses.dataclass
class Record:
    x: int
    target: int


class Items(Dataset):
    """Items that a function makes of their number."""

    def __init__(self, make, count=6):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.make(row)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class PolarsFrame:
    """What a polars frame has."""

    __module__ = "polars.dataframe.frame"
    columns = tuple(FRAME)

    def to_arrow(self):
        return pa.Table.from_pandas(FRAME)


def read(value):
    """All rows of what a function returned, as one block."""
    parts = [block for _, block in source_from_value("m:f", value).blocks()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def refusal(value):
    with pytest.raises(UserError) as caught:
        list(source_from_value("m:f", value).blocks())
    message = str(caught.value)
    assert "\n" not in message
    assert "m:f" in message
    return message


# Tables.


@pytest.mark.parametrize(
    "value",
    [
        FRAME,
        pa.Table.from_pandas(FRAME),
        pa.RecordBatch.from_pandas(FRAME),
        PolarsFrame(),
        FRAME.to_records(index=False),
        FRAME.to_records(index=False).astype([("a", ">f4"), ("b", ">f4"), ("target", ">i8")]),
        {"a": X[:, 0].tolist(), "b": torch.tensor(X[:, 1], requires_grad=True), "target": pd.Series(Y)},
        {"a": pa.array(X[:, 0]), "b": X[:, 1].astype(">f8"), "target": Y[:, None]},
        (FRAME[["a", "b"]], FRAME["target"]),
        [{"a": float(x[0]), "b": float(x[1]), "target": int(y)} for x, y in zip(X, Y, strict=True)],
    ],
)
def test_a_table_of_any_library_has_the_same_columns(value):
    block = read(value)
    assert list(block) == ["a", "b", "target"]
    for name, column in block.items():
        np.testing.assert_array_equal(column, FRAME[name])
        assert column.dtype.isnative


@pytest.mark.parametrize(
    ("features", "label"),
    [(X, Y), (X, Y.tolist()), (torch.tensor(X), torch.tensor(Y)[:, None]), (scipy.sparse.csr_matrix(X), Y)],
)
def test_a_pair_of_arrays_is_features_and_label(features, label):
    source = source_from_value("m:f", (features, label))
    [(_, block)] = source.blocks()
    np.testing.assert_array_equal(block["features"], X)
    np.testing.assert_array_equal(block["target"], Y)
    assert not source.is_ready  # it is standardized as columns are


def test_a_pair_of_pairs_is_train_and_test():
    found = source_from_value("m:f", ((X, Y), (X[:2], Y[:2]))).blocks()
    assert [(split, len(block["target"])) for split, block in found] == [("train", 6), ("test", 2)]


def test_what_scikit_learn_loads_has_the_names_of_its_features():
    from sklearn.datasets import load_iris

    assert list(read(load_iris()))[-2:] == ["petal width (cm)", "target"]


@pytest.mark.parametrize("names", [["a", "b"], [3, 1], [True, False]])
def test_a_pandas_category_stays_one_whatever_its_values_are(names):
    column = pd.Categorical.from_codes([0, 1, -1, 0, 1, 0], names)
    block = read(pd.DataFrame({"c": column, "target": Y}))
    first, second = map(str, names)
    assert block["c"].tolist() == [first, second, None, first, second, first]


def test_times_and_masked_numbers_are_what_columns_of_files_are():
    days = pd.date_range("2020-01-01", periods=6)
    block = read(
        {
            "duration": np.array([90, "NaT", 1, 2, 3, 4], dtype="m8[m]"),
            "list": [day - days[0] for day in days],
            "date": list(days),
            "masked": np.ma.array([1, 2, 3, 4, 5, 6], mask=Y),
            "bytes": np.array([b"a", b"bc"] * 3),
            "mixed": ["a", None] * 3,
            "target": Y,
        }
    )
    np.testing.assert_array_equal(block["duration"], [5400, np.nan, 60, 120, 180, 240])
    np.testing.assert_array_equal(block["list"], 86400.0 * np.arange(6))
    assert block["date"].dtype.kind == "M"
    np.testing.assert_array_equal(block["masked"], [1, np.nan, 3, np.nan, 5, np.nan])
    assert block["bytes"].tolist() == ["a", "bc"] * 3
    assert block["mixed"].tolist() == ["a", None] * 3
    frame = pd.DataFrame({"p": pd.period_range("2020-01", periods=6, freq="M"), "target": Y})
    assert read(frame)["p"].dtype.kind == "M"


def test_arrays_inside_an_array_of_objects_are_stacked():
    column = np.empty(6, dtype=object)
    column[:] = list(X)
    np.testing.assert_array_equal(read({"x": column, "target": Y})["x"], X)


def test_an_index_with_a_name_is_noted():
    source = source_from_value("m:f", FRAME.rename_axis("id"))
    assert source.notes == ("the frame's index 'id' is left out: reset_index() makes it a column",)


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        (FRAME.set_axis(["a", "a", "target"], axis=1), ["2 columns named 'a'", "rename"]),
        (FRAME.set_axis([0, "0", "target"], axis=1), ["2 columns named '0'"]),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), ["2 columns named 'a'"]),
        (FRAME[:0], ["is empty: it has 0 rows"]),
        ({}, ["is empty"]),
        ([], ["is empty"]),
        ({"x": 1.0, "target": Y}, ["one value as column 'x'", "array of rows"]),
        ({"x": None, "target": Y}, ["one value as column 'x'"]),
        ({"x": X[:5], "target": Y}, ["different lengths {'x': 5, 'target': 6}"]),
        ({"x": [[1, 2], [3]], "target": [0, 1]}, ["'x'", "row 1", "shape [1]", "shape [2]", "pad"]),
        ({"x": {"a": 1}, "target": [0]}, ["'x' is a dict"]),
        ({"x": X + 1j, "target": Y}, ["complex"]),
        ((X, np.eye(2)[Y]), ["y has shape [6, 2]", "argmax"]),
        ((FRAME, FRAME), ["two frames of the same columns", "'test'"]),
        ((X, X, Y, Y), ["4 arrays", "(X_train, y_train)"]),
        (X, ["one ndarray of shape [6, 2]", "(X, y)"]),
        (torch.tensor(X), ["one Tensor of shape [6, 2]"]),
        (scipy.sparse.eye_array(3, format="csr"), ["of shape [3, 3]", "(X, y)"]),
        (None, ["NoneType", "lack a return"]),
        ("data.csv", ["the text 'data.csv'", "csv:PATH"]),
        (5, ["returned a int: return a pandas frame"]),
        ({1, 2}, ["returned a set"]),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_name(value, pieces):
    message = refusal(value)
    assert all(piece in message for piece in pieces), message


# What has no rows that can be read by number.


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        (DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y))), ["DataLoader", "loader.dataset"]),
        ((pair for pair in zip(X, Y, strict=True)), ["generator", "list(...)"]),
        (iter([1]), ["list_iterator"]),
        (Items, ["the class Items", "Items(...)"]),
        (len, ["that can be called"]),
        (type("Dataset", (), {"__module__": "tensorflow.data"})(), ["TensorFlow", "as_numpy_iterator"]),
        (random_split(Items(lambda row: (X[row], 0)), [4, 2]), ["list of 2 (Subset, Subset)", "by split"]),
        (
            type("F", (), {"__module__": "dask.dataframe", "columns": ["a"], "iloc": 0})(),
            ["Dask", "compute()"],
        ),
    ],
)
def test_a_stream_is_refused_with_what_to_return_instead(value, pieces):
    message = refusal(value)
    assert all(piece in message for piece in pieces), message


# Splits.


@pytest.mark.parametrize("name", ["dev", "Val", "VALID", "eval", "validation"])
def test_splits_have_any_usual_name_and_are_of_any_form(name):
    for value in (FRAME, (X, Y), {"a": X, "target": Y}, Items(lambda row: (X[row], int(Y[row])))):
        source = source_from_value("m:f", {"Train": value, name: value, "testing": value})
        assert [part.split for part in source.parts] == ["train", "validation", "test"]
        assert [len(block["target"]) for _, block in source.blocks()] == [6, 6, 6]


def test_a_column_may_be_called_as_a_split():
    assert list(read({"test": X[:, 0], "b": X[:, 1], "target": Y})) == ["test", "b", "target"]


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        ({"train": FRAME, "tset": FRAME}, ["'tset' (did you mean 'test'?) beside the splits train"]),
        ({"train": FRAME[:0], "val": FRAME}, ["split 'train'", "is empty"]),
        ({"train": DataLoader(Items(lambda row: row))}, ["split 'train'", "loader.dataset"]),
        ({"dev": FRAME}, ["'train' must be among them"]),
    ],
)
def test_splits_that_cannot_be_read_are_refused_by_name(value, pieces):
    message = refusal(value)
    assert all(piece in message for piece in pieces), message


# Items.


@pytest.mark.parametrize(
    ("features", "shape", "dtype"),
    [
        (torch.ones(3, requires_grad=True), (3,), "float32"),
        (torch.ones(3).bfloat16(), (3,), "float32"),
        (torch.eye(3).to_sparse(), (3, 3), "float32"),
        (np.ones(3, dtype=">f8"), (3,), "float64"),
        ([1, 2, 3], (3,), "int64"),
        (np.full((1, 4, 4), 9, dtype=np.uint8), (1, 4, 4), "uint8"),
        (np.full((1, 4, 4), 4000, dtype=np.uint16), (1, 4, 4), "float32"),
        (np.arange(3, dtype=np.uint16), (3,), "uint16"),  # tokens
        (Image.new("L", (5, 4)), (1, 4, 5), "uint8"),
        (Image.new("1", (5, 4)), (1, 4, 5), "uint8"),
        (Image.new("RGB", (5, 4)), (3, 4, 5), "uint8"),
        (Image.new("RGBA", (5, 4)), (3, 4, 5), "uint8"),
        (Image.new("CMYK", (5, 4)), (3, 4, 5), "uint8"),
        (Image.new("P", (5, 4)), (3, 4, 5), "uint8"),
        (Image.new("I;16", (5, 4), 4000), (1, 4, 5), "float32"),
        (Image.new("F", (5, 4)), (1, 4, 5), "float32"),
    ],
)
def test_features_of_items_are_what_a_model_takes(features, shape, dtype):
    source = source_from_value("m:f", Items(lambda row: (features, row % 2)))
    [(_, block)] = source.blocks()
    assert block["features"].shape == (6, *shape)
    assert block["features"].dtype == dtype
    assert block["target"].tolist() == Y.tolist()
    assert source.is_ready


@pytest.mark.parametrize(
    "make",
    [
        lambda row: {"x": row, "target": row % 2},
        lambda row: Record(row, row % 2),
        lambda row: Point(row, "ab"[row % 2], row % 2),
        lambda row: {"x": row, "y": None if row else "a", "target": row % 2},
    ],
)
def test_items_of_single_values_are_the_rows_of_a_table(make):
    source = source_from_value("m:f", Items(make))
    [(_, block)] = source.blocks()
    assert block["x"].tolist() == list(range(6))
    assert not source.is_ready


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        (lambda row: X[row], ["item 0 is one ndarray [2]", "pair (features, label) or a dict"]),
        (lambda row: (X[row],), ["item 0 is a tuple of 1"]),
        (lambda row: (X[row], 1, 2), ["item 0 is a tuple of 3 (ndarray [2], int, int)"]),
        (lambda row: (Image.new("L", (4 + row, 4)), 0), ["item 1 is of shape [1, 4, 5]"]),
        (lambda row: None if row == 4 else (X[row], 0), ["item 4 is None", "lack a return"]),
        (lambda row: (None if row == 4 else X[row], 0), ["features of item 4 are None"]),
        (lambda row: {"x": None if row == 4 else X[row], "target": 0}, ["'x' of item 4 is None"]),
        (lambda row: {"x": 1, "ab"[row % 2]: 0}, ["'a' is in one of the items 0 and 1"]),
        (lambda row: (X[row + 1], 0), ["item 5 of 6 raised IndexError", "__getitem__", "SHOAL_TRACEBACK"]),
    ],
)
def test_items_that_cannot_be_rows_are_refused_by_number(make, pieces, monkeypatch):
    monkeypatch.setattr("shoal.data.sources.items.SLOW_S", 60.0)  # a busy machine compares no other rows
    message = refusal(Items(make))
    assert all(piece in message for piece in pieces), message


# Streams.


def test_an_iterable_dataset_is_read_into_rows_in_its_order():
    source = source_from_value("m:f", Stream())
    [(_, block)] = source.blocks()
    np.testing.assert_array_equal(block["features"], X)
    assert block["target"].tolist() == Y.tolist()
    assert source.is_ready


class Filling(IterableDataset):
    """Fills one array again and again, endlessly or not, or raises."""

    def __init__(self, count=None, fails=False):
        self.count, self.fails = count, fails

    def __iter__(self):
        filled = np.zeros(2)
        for row in itertools.count() if self.count is None else range(self.count):
            filled[:] = row
            yield filled, row % 2
        if self.fails:
            raise RuntimeError("connection lost")


def test_a_stream_may_fill_one_array_again():
    assert read(Filling(4))["features"].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_a_stream_that_does_not_end_or_raises_is_refused_with_the_remedy(monkeypatch):
    assert "RuntimeError after 4 items: connection lost" in refusal(Filling(4, fails=True))
    monkeypatch.setattr(base, "IN_DRIVER_BYTES", 4000)
    message = refusal(Filling())
    assert "has not ended after" in message
    assert "itertools.islice" in message


# Random numbers.


def test_items_that_draw_are_known_and_read_alike_with_one_seed():
    drawing = Items(lambda row: (X[row] + torch.randn(2).numpy(), int(Y[row])))
    [part] = source_from_value("m:f", drawing).parts
    first = read(drawing)["features"]
    seed_random_states(5)
    np.testing.assert_array_equal(read(drawing)["features"], first)
    np.testing.assert_array_equal(
        part.drawn.read([0, 3], 9)["features"], part.drawn.read([0, 3], 9)["features"]
    )
    assert (part.drawn.read([0, 3], 9)["features"] != first[[0, 3]]).all()
    [part] = source_from_value("m:f", Items(lambda row: (X[row], int(Y[row])))).parts
    assert part.drawn is None


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, row):
        self.calls += 1
        return X[row] + self.calls, 0


def scaled_in_place(row, stored=X.copy()):  # noqa: B008
    stored[row] *= 2
    return stored[row], 0


@pytest.mark.parametrize(
    "make", [Counter(), scaled_in_place, lambda row: (X[row] + np.random.default_rng().normal(), 0)]
)
def test_items_that_are_others_when_they_are_read_again_are_refused(make):
    message = refusal(Items(make))
    assert "item 0 is another when it is read again ('features' differs)" in message
    assert "numpy.random.default_rng(index)" in message


FUNCTIONS = """
import os
import numpy as np

class Items(list):
    pass

def columns():
    return {"x": np.random.default_rng().normal(size=6), "target": [0, 1] * 3}

def items():
    return [(np.random.default_rng().normal(size=2), 0) for _ in range(6)]

def splits():
    return {"train": columns(), "test": columns()}

def without_validation_rows():
    return {"train": seeded(), "val": {"x": np.empty(0), "target": np.empty(0)}}

def seeded():
    return {"x": np.random.normal(size=6), "target": [0, 1] * 3}

def only_once(state=[]):
    if state:
        raise RuntimeError("called again")
    state.append(1)
    return seeded()
"""


def test_a_function_that_returns_other_rows_when_called_again_is_refused(user_module):
    mine = user_module(FUNCTIONS)
    for name in ("columns", "items", "splits"):
        with pytest.raises(DataError, match="returns other rows when it is called again"):
            open_source(f"{mine}:{name}")
    for name in ("seeded", "only_once", "without_validation_rows"):
        open_source(f"{mine}:{name}")


# Both ways of reading.


@pytest.mark.long
@pytest.mark.parametrize("has_splits", [False, True])
def test_items_above_the_limit_are_the_rows_below_it(has_splits, monkeypatch, preprocessing):
    items = Items(lambda row: (X[row % 6] + torch.randn(2).numpy(), row % 2), 200)
    value = (
        {"train": items, "dev": Items(items.make, 40), "test": Items(items.make, 30)} if has_splits else items
    )
    small = source_from_value("m:f", value)
    whole = list(small.blocks())
    monkeypatch.setattr(base, "IN_DRIVER_BYTES", 100)
    monkeypatch.setattr(module, "BLOCK_BYTES", 160)
    large = source_from_value("m:f", value)
    assert small.nbytes == large.nbytes
    assert not large.is_small
    blocks = list(large.blocks())
    assert len(blocks) > 3 * len(whole)
    for split, block in whole:
        parts = [other for name, other in blocks if name == split]
        chunked = next(part for part in large.parts if part.split == split).chunks()
        for found in (parts, list(chunked.blocks())):
            for name, column in block.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in found]), column)
    made = preprocessing(is_ready=True)
    assert inspect_source(large, made).rows == inspect_source(small, made).rows
