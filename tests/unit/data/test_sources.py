import datetime
import decimal
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.data.random_state import seed_random_states
from shoal.data.sources.function import source_from_value
from shoal.data.sources.open import open_source
from shoal.data.sources.synthetic import synthetic_block, synthetic_options
from shoal.data.statistics import ColumnStats
from shoal.data.values import as_numbers
from shoal.errors import DataError, UserError


def blocks(uri):
    return [block for _, block in open_source(uri).blocks()]


def read(uri):
    """All rows of a source as one block."""
    parts = blocks(uri)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def problem(uri, kind=DataError):
    with pytest.raises(kind) as caught:
        list(open_source(uri).blocks())
    return str(caught.value)


# Files.


def test_csv_keeps_numbers_texts_booleans_and_marks_what_is_missing(here):
    here("a.csv", 'x,color,is_old,target\n1,red,true,0\n,"blue, dark",false,1\n2.5,,true,0\n')
    block = read("csv:a.csv")
    np.testing.assert_array_equal(block["x"], [1.0, np.nan, 2.5])
    assert block["color"].tolist() == ["red", "blue, dark", None]
    assert block["is_old"].tolist() == [True, False, True]
    assert block["target"].dtype == np.int64


def test_csv_files_with_whole_numbers_in_one_and_fractions_in_the_other_are_read_alike(here):
    here("d/a.csv", "x,target\n1,0\n2,1\n")
    here("d/b.csv", "x,target\n1.5,0\n2.5,1\n")
    for part in blocks("csv:d"):
        assert part["x"].dtype == np.float64
    np.testing.assert_array_equal(read("csv:d")["x"], [1, 2, 1.5, 2.5])


def test_a_column_that_is_missing_from_one_of_the_files_is_missing_in_its_rows(here):
    here("d/a.csv", "x,y,target\n1,5,0\n2,6,1\n")
    here("d/b.csv", "x,target\n3,0\n")
    np.testing.assert_array_equal(read("csv:d")["y"], [5, 6, np.nan])


def test_a_glob_reads_its_files_in_the_order_of_their_names(here):
    for number in (2, 0, 1):
        here(f"part-{number}.csv", f"x,target\n{number},0\n")
    here("other.csv", "x,target\n9,0\n")
    assert read("csv:part-*.csv")["x"].tolist() == [0, 1, 2]


def test_a_directory_is_read_in_depth_without_hidden_and_bookkeeping_files(here):
    here("d/a.csv", "x,target\n1,0\n")
    here("d/deeper/b.csv", "x,target\n2,0\n")
    here("d/_SUCCESS", "junk")
    here("d/.a.csv.crc", "junk")
    assert read("csv:d")["x"].tolist() == [1, 2]


def test_a_file_that_is_named_outright_is_read_whatever_its_name(here):
    here("_rows.csv", "x,target\n1,0\n")
    assert read("csv:_rows.csv")["x"].tolist() == [1]


def test_a_parquet_directory_keeps_types_and_turns_equal_lists_into_a_tensor(here):
    here("d/.keep", "")
    for number in range(2):
        table = pa.table({"v": [[1.0, 2.0], [3.0, 4.0]], "s": ["a", None], "target": [number, 1]})
        pq.write_table(table, f"d/{number}.parquet")
    block = read("parquet:d")
    assert block["v"].shape == (4, 2)
    assert block["s"].tolist() == ["a", None, "a", None]
    assert block["target"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1_000_000, None, 86_400_000_000], pa.timestamp("us")), [1, np.nan, 86400]),
        (pa.array([1_000, None, 86_400_000], pa.timestamp("ms", tz="Europe/Berlin")), [1, np.nan, 86400]),
        (pa.array([datetime.date(1970, 1, 2), None, datetime.date(1970, 1, 1)]), [86400, np.nan, 0]),
        (pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2")]), [1.5, np.nan, 2]),
        (pa.array([True, None, False]), [1, np.nan, 0]),
        (pa.array([1, None, 3], pa.int64()), [1, np.nan, 3]),
    ],
    ids=["time", "time with zone", "date", "decimal", "boolean", "whole number"],
)
def test_whatever_is_a_quantity_becomes_a_number_column_times_in_seconds(here, column, expected):
    pq.write_table(pa.table({"x": column, "target": [0, 1, 0]}), "t.parquet")
    values = read("parquet:t.parquet")["x"]
    assert ColumnStats.of(values).kind == "number"
    np.testing.assert_array_equal(as_numbers(values), expected)


def test_lists_of_different_lengths_are_refused_by_the_columns_name(here):
    pq.write_table(pa.table({"v": [[1.0], [1.0, 2.0]], "target": [0, 1]}), "t.parquet")
    assert "column 'v' holds lists of different lengths" in problem("parquet:t.parquet")


RECORDS = [{"x": 1, "s": "a", "target": 0}, {"x": 2.5, "s": None, "target": 1}]


def test_json_lines_and_a_json_array_read_the_same(here):
    here("l.json", "\n".join(map(json.dumps, RECORDS)))
    here("a.json", json.dumps(RECORDS, indent=1))
    lines, array = read("json:l.json"), read("json:a.json")
    assert lines["x"].tolist() == array["x"].tolist() == [1.0, 2.5]
    assert lines["s"].tolist() == array["s"].tolist() == ["a", None]


def test_a_key_that_the_first_record_lacks_is_a_column_nevertheless(here):
    records = [{"target": 0}, {"x": 2.0, "target": 1}]
    # Without a line end after the last record, pyarrow 25 loses a key that is new in it.
    here("l.json", "\n".join(map(json.dumps, records)) + "\n")
    here("a.json", json.dumps(records))
    for uri in ("json:l.json", "json:a.json"):
        np.testing.assert_array_equal(read(uri)["x"], [np.nan, 2.0])


def test_npz_gives_its_arrays_whatever_their_shape(here):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez("a.npz", images=images, target=np.array([0, 1]))
    np.testing.assert_array_equal(read("npz:a.npz")["images"], images)


def test_several_npz_files_follow_each_other(here):
    for number in range(2):
        np.savez(f"{number}.npz", x=np.full(2, number), target=np.zeros(2))
    assert read("npz:*.npz")["x"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train.csv", "test.csv"), {"train": ["train.csv"], "test": ["test.csv"]}),
        (
            ("val/a.csv", "train/b.csv", "train/a.csv"),
            {"train": ["train/a.csv", "train/b.csv"], "validation": ["val/a.csv"]},
        ),
        (
            ("x.train.csv", "x.valid.csv", "x_test-00000-of-00001.csv"),
            {"train": ["x.train.csv"], "validation": ["x.valid.csv"], "test": ["x_test-00000-of-00001.csv"]},
        ),
        (("train-0.csv", "train-1.csv"), {None: ["train-0.csv", "train-1.csv"]}),
        (("test.csv", "val.csv"), {None: ["test.csv", "val.csv"]}),
        (("contest.csv", "trains.csv", "values.csv"), {None: ["contest.csv", "trains.csv", "values.csv"]}),
        (("train-test.csv", "other.csv"), {None: ["other.csv", "train-test.csv"]}),
        (("a/train.csv", "a/test.csv"), {None: ["a/test.csv", "a/train.csv"]}),
    ],
)
def test_the_names_at_the_top_of_a_folder_state_its_splits(here, names, expected):
    for name in names:
        here(f"d/{name}", "x,target\n1,0\n")
    source = open_source("csv:d")
    assert {
        part.split: [path.partition("/d/")[2] for path in part.paths] for part in source.parts
    } == expected
    assert list(dict.fromkeys(split for split, _ in source.blocks())) == list(expected)


def test_splits_of_files_have_the_columns_and_types_of_all_of_them(here):
    here("d/train.csv", "x,y,target\n1,a,0\n")
    here("d/test.csv", "x,target\n1.5,0\n")
    train, test = blocks("csv:d")
    assert train["x"].dtype == test["x"].dtype == np.float64
    assert test["y"].tolist() == [None]


def test_a_file_beside_the_splits_of_a_folder_is_refused_and_a_glob_reads_all_as_one(here):
    for name in ("train", "test", "more"):
        here(f"d/{name}.csv", "x,target\n1,0\n")
    message = problem("csv:d")
    assert all(piece in message for piece in ("'more.csv'", "splits train, test", "csv:d/*"))
    assert [part.split for part in open_source("csv:d/*").parts] == [None]


def test_a_file_that_is_moved_to_another_split_changes_the_fingerprint(here):
    for name in ("test/a", "train/b", "train/c"):
        here(f"d/{name}.csv", f"x,target\n{ord(name[-1])},0\n")
    first = open_source("csv:d").fingerprint
    Path("d/train/b.csv").rename("d/test/b.csv")
    assert open_source("csv:d").fingerprint != first


def test_a_folder_in_an_object_store_states_splits(s3):
    from shoal.storage.folder import Folder

    folder = Folder(f"{s3}/given")
    for name in ("train/a.csv", "train/b.csv", "test/a.csv"):
        folder.write(name, b"x,target\n1,0\n")
    source = open_source(f"csv:{s3}/given")
    assert [(part.split, len(part.paths)) for part in source.parts] == [("train", 2), ("test", 1)]
    assert [split for split, _ in source.blocks()] == ["train", "test"]


@pytest.mark.parametrize(
    ("name", "content", "uri", "pieces"),
    [
        ("a.parquet", b"not parquet at all", "parquet:a.parquet", ["does not read as parquet"]),
        ("a.json", b"{broken\n", "json:a.json", ["does not read as json"]),
        ("a.json", b"[1, 2]", "json:a.json", ["does not read as json"]),
        ("a.npz", b"not a zip file", "npz:a.npz", ["does not read as npz"]),
        (
            "a.csv",
            b"x,y\n1,2\n1,2,3\n",
            "csv:a.csv",
            ["does not read as csv", "row 3 has 3 cells where 2 are expected"],
        ),
        ("a.csv", b"", "csv:a.csv", ["is empty (0 bytes)"]),
        ("a.csv", b"x,y\n1,2\n", "csv:b.csv", ["no file 'b.csv', seen from", "glob"]),
        ("a.csv", b"x,y\n1,2\n", "csv:c/*.csv", ["no file 'c/*.csv'"]),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_the_source_and_the_remedy(
    here, name, content, uri, pieces
):
    here(name, content)
    message = problem(uri)
    assert all(piece in message for piece in [f"data.source='{uri}'", *pieces]), message


def test_npz_with_arrays_of_different_lengths_or_objects_is_refused(here):
    np.savez("a.npz", x=np.zeros(3), target=np.zeros(2))
    assert "different lengths {'x': 3, 'target': 2}" in problem("npz:a.npz")
    np.savez("o.npz", x=np.array([{}, {}], dtype=object), target=np.zeros(2))
    assert all(piece in problem("npz:o.npz") for piece in ("array 'x'", "o.npz", "Python objects"))


# Sources by name.


def test_a_scikit_learn_set_has_its_features_and_target():
    block = read("sklearn:iris")
    assert len(block) == 5
    assert block["target"].shape == (150,)


@pytest.mark.parametrize(
    ("uri", "pieces"),
    [
        ("csvv:a.csv", ["'csvv:a.csv' is not known", "did you mean 'csv'", "package.module:function"]),
        ("digits", ["'digits' is not known"]),
        ("sklearn:digit", ["did you mean 'digits'"]),
        ("synthetic:clasification", ["did you mean 'classification'"]),
        ("synthetic:classification?row=5", ["row=5 is not understood"]),
        ("synthetic:classification?rows=0", ["rows=0 is not understood"]),
        ("synthetic:classification?rows=", ["rows=(nothing) is not understood"]),
    ],
)
def test_an_unknown_source_is_refused_with_what_there_is(uri, pieces):
    message = problem(uri)
    assert all(piece in message for piece in pieces), message


def test_a_path_without_a_scheme_is_refused_with_its_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").touch()
    for uri, meant in [
        ("orders.csv", "csv:orders.csv"),
        ("data/train.jsonl", "json:data/train.jsonl"),
        ("photos", "images:photos"),
        ("shop.orders", "shop:orders"),
        ("shop.orders?rows=5", "shop:orders?rows=5"),
    ]:
        assert f"did you mean '{meant}'" in problem(uri)


def test_files_of_another_kind_are_refused_with_their_scheme(tmp_path):
    for name in ("cat/1.png", "cat/2.jpg", "rows.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    message = problem(f"csv:{tmp_path}/cat")
    assert "1.png" in message
    assert "write images:DIR" in message
    assert f"write csv:{tmp_path}/rows.csv" in problem(f"parquet:{tmp_path}/rows.csv")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_synthetic_row_depends_on_its_number_alone(kind):
    options = synthetic_options(f"synthetic:{kind}?features=7&classes=3&seed=5")
    options.pop("rows")
    whole = synthetic_block(first=0, rows=10_000, **options)
    for first, rows in [(0, 1), (4095, 2), (4096, 4096), (123, 9_000), (9_999, 1)]:
        part = synthetic_block(first=first, rows=rows, **options)
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][first : first + rows])


def test_a_synthetic_source_has_the_asked_shape_and_grows_without_changing():
    small = read("synthetic:classification?rows=100&features=5&classes=4")
    large = read("synthetic:classification?rows=9000&features=5&classes=4")
    assert small["features"].shape == (100, 5)
    assert set(large["target"].tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(large["features"][:100], small["features"])


def test_a_hugging_face_folder_keeps_the_splits_it_has(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"x": [1.0, 2.0], "target": [0, 1]})
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "set"))
    found = list(open_source(f"huggingface:{tmp_path / 'set'}").blocks())
    assert [split for split, _ in found] == ["train", "test"]
    assert found[0][1]["x"].tolist() == [1.0, 2.0]


# A user's function.

FUNCTIONS = """
import random
import numpy as np, pandas as pd, torch
from torch.utils.data import Dataset, TensorDataset

def frame(rows=3, name="x"):
    return pd.DataFrame({name: range(rows), "target": [0] * rows})

def columns():
    return {"x": [[1, 2], [3, 4]], "target": np.array([0, 1])}

def tensors():
    return TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))

class Items(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, row):
        return {"image": np.full((2, 2), row), "target": row}

def splits():
    return {"train": frame(4), "val": frame(2), "test": frame(1)}

def no_train():
    return {"val": frame(), "test": frame()}

def nothing():
    return None

def empty():
    return TensorDataset(torch.empty(0, 2), torch.empty(0))

def triples():
    return [(1, 2, 3)]

def ragged():
    return {"x": [1, 2, 3], "target": [0, 1]}

def scalar():
    return {"x": 1.0, "target": [0, 1]}

def drawn():
    return {"x": np.random.rand(3), "y": [random.random() for _ in range(3)], "z": torch.rand(3).numpy()}

class DrawnItems(Items):
    def __init__(self, rows=40):
        self.rows = rows
    def __len__(self):
        return self.rows
    def __getitem__(self, row):
        return {"x": np.array([np.random.rand(), random.random(), torch.rand(1).item()]), "target": row}

def fails():
    raise KeyError("where")
"""


@pytest.fixture
def mine(user_module):
    return user_module(FUNCTIONS)


def test_a_function_may_return_a_frame_and_takes_keywords_from_the_query(mine):
    assert read(f"{mine}:frame")["x"].tolist() == [0, 1, 2]
    assert read(f"{mine}:frame?rows=2&name=size")["size"].tolist() == [0, 1]


def test_a_function_may_return_a_dict_of_columns(mine):
    np.testing.assert_array_equal(read(f"{mine}:columns")["x"], [[1, 2], [3, 4]])


def test_a_function_may_return_a_torch_dataset_whose_features_are_left_as_they_are(mine):
    source = open_source(f"{mine}:tensors")
    assert source.is_ready
    block = read(f"{mine}:tensors")
    np.testing.assert_array_equal(block["features"], np.arange(6.0).reshape(3, 2))
    assert block["target"].tolist() == [0, 1, 0]
    assert read(f"{mine}:Items")["image"].shape == (2, 2, 2)


def test_a_function_that_draws_random_numbers_returns_the_same_rows_again(mine):
    found = []
    for seed in (1, 2):
        seed_random_states(seed)
        found.append({name: column.tolist() for name, column in read(f"{mine}:drawn").items()})
    assert found[0] == found[1]
    seed_random_states(1)
    expected = random.random()
    seed_random_states(1)
    read(f"{mine}:drawn")
    assert random.random() == expected


def test_what_an_item_draws_depends_on_its_row_alone(mine, monkeypatch):
    whole = read(f"{mine}:DrawnItems")["x"]
    assert len({value for row in whole.tolist() for value in row}) == 120
    monkeypatch.setattr("shoal.data.sources.function.BLOCK_BYTES", 160)
    seed_random_states(9)
    blocks = list(open_source(f"{mine}:DrawnItems").blocks())
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate([block["x"] for _, block in blocks]), whole)


def test_a_function_may_return_a_dict_of_splits(mine):
    found = [(split, len(block["x"])) for split, block in open_source(f"{mine}:splits").blocks()]
    assert found == [("train", 4), ("validation", 2), ("test", 1)]


@pytest.mark.parametrize(
    ("call", "kind", "pieces"),
    [
        ("no_train", DataError, ["splits val, test", "'train' must be among them"]),
        ("nothing", DataError, ["returned a NoneType", "pandas frame"]),
        ("empty", DataError, ["is empty"]),
        ("triples", DataError, ["pair (features, label) or a dict"]),
        ("ragged", DataError, ["different lengths"]),
        ("scalar", DataError, ["'x'"]),
        ("fails", UserError, ["raised KeyError", "SHOAL_TRACEBACK"]),
        ("frame?row=3", UserError, ["raised TypeError", "'row'"]),
        ("fram", UserError, ["has no 'fram'", "did you mean 'frame'"]),
    ],
)
def test_an_error_names_what_a_function_returned_or_raised(mine, call, kind, pieces):
    message = problem(f"{mine}:{call}", kind)
    assert all(piece in message for piece in pieces), message


# Fingerprints.


def test_a_files_fingerprint_follows_its_content(here):
    here("a.csv", "x,target\n1,0\n2,1\n")
    first = open_source("csv:a.csv").fingerprint
    assert open_source("csv:a.csv").fingerprint == first
    here("a.csv", "x,target\n1,0\n3,1\n")
    assert open_source("csv:a.csv").fingerprint != first


@pytest.mark.parametrize(
    "other",
    [
        {"x": [1.0, 3.0], "s": ["a", None], "target": [0, 1]},
        {"x": [1.0, 2.0], "s": ["a", "b"], "target": [0, 1]},
        {"y": [1.0, 2.0], "s": ["a", None], "target": [0, 1]},
        {"x": [1, 2], "s": ["a", None], "target": [0, 1]},
        {"x": [2.0, 1.0], "s": ["a", None], "target": [0, 1]},
    ],
)
def test_a_values_fingerprint_follows_values_names_types_and_order(other):
    same = {"x": [1.0, 2.0], "s": ["a", None], "target": [0, 1]}
    first = source_from_value("m:f", pd.DataFrame(same)).fingerprint
    assert source_from_value("m:f", pd.DataFrame(same)).fingerprint == first
    assert source_from_value("m:f", pd.DataFrame(other)).fingerprint != first


def test_a_synthetic_fingerprint_follows_its_options():
    prints = {open_source(f"synthetic:classification?seed={seed}").fingerprint for seed in (0, 1)}
    assert len(prints) == 2
