"""How files are written is found from samples, and both ways of reading give the same rows and types."""

import gzip
import io
import itertools
import json
import pickle
import tarfile
import zipfile

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from shoal.data.config import DataConfig
from shoal.data.read_options import ReadOptions
from shoal.data.sources import arrow, base, csv_dialect, csv_files, files, json_files
from shoal.data.sources.base import OtherTypesError, read_again
from shoal.data.sources.open import open_source
from shoal.errors import DataError

ROWS = 40


@pytest.fixture(params=["whole", "in chunks"])
def read(request, monkeypatch):
    """Read a source in one of the two ways; returns its columns."""
    if request.param == "in chunks":
        monkeypatch.setattr(files, "IN_DRIVER_BYTES", 0)
        monkeypatch.setattr(base, "IN_DRIVER_BYTES", 0)

    def read_all(uri, **options):
        return joined(open_source(uri, options=ReadOptions(**options)))

    return read_all


@pytest.fixture
def small_samples(monkeypatch):
    """Samples of a few hundred bytes, so that small files stand for large ones."""
    monkeypatch.setattr(csv_dialect, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(csv_dialect, "HEAD_BYTES", 400)
    monkeypatch.setattr(csv_dialect, "SLICE_BYTES", 60)


def joined(source):
    blocks = read_again(lambda: [block for _, block in source.blocks()])
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def lines(header, row, rows=ROWS):
    return "\n".join([header, *(row(number) for number in range(rows))]) + "\n"


def notes(uri, **options):
    return " / ".join(open_source(uri, options=ReadOptions(**options)).notes)


def problem(uri, **options):
    with pytest.raises(DataError) as caught:
        joined(open_source(uri, options=ReadOptions(**options)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# How CSV is written.


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected_and_quoted_cells_are_not_divided(here, read, delimiter):
    here(
        "a.csv",
        lines(delimiter.join("xsy"), lambda n: delimiter.join([str(n), '"a,b;c|d\te\nf"', "01"[n % 2]])),
    )
    block = read("csv:a.csv")
    assert block["x"].tolist() == list(range(ROWS))
    assert set(block["s"]) == {"a,b;c|d\te\nf"}
    assert block["y"].dtype == np.int64
    assert ("data.delimiter" in notes("csv:a.csv")) == (delimiter != ",")


def test_a_decimal_comma_is_read_as_a_number_in_semicolon_and_in_quoted_comma_files(here, read):
    here("s.csv", lines("x;z;y", lambda n: f"{n},25;-0.{n:02};a"))
    here("q.csv", lines("x,z,y", lambda n: f'"{n},25",-0.{n:02},a'))
    for name in ("s", "q"):
        block = read(f"csv:{name}.csv")
        assert block["x"].tolist() == [n + 0.25 for n in range(ROWS)]
        assert block["z"].tolist() == [-n / 100 for n in range(ROWS)]
        assert "',' is the decimal mark in 'x' (data.decimal)" in notes(f"csv:{name}.csv")


def test_groups_of_thousands_are_read_with_the_mark_that_the_file_has(here, read):
    here("a.csv", lines("x;z;y", lambda n: f"{n},25;{n % 9 + 1}.{n:03};a"))
    assert read("csv:a.csv")["z"].tolist() == [(n % 9 + 1) * 1000 + n for n in range(ROWS)]
    # By itself, 1,234 may be either: it stays text, whose meaning is learnt later.
    here("b.csv", lines("x,y", lambda n: f'"{n % 9 + 1},{n:03}",a'))
    assert read("csv:b.csv")["x"].dtype == object
    assert read("csv:b.csv", decimal=",")["x"][1] == 2.001


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("utf-8-sig", "é"),
        ("utf-16", "é"),
        ("utf-16-le", "e"),
        ("utf-16-be", "e"),
        ("cp1252", "sí – no"),
        ("latin-1", "Málaga"),
        ("gb18030", "北京"),
    ],
)
def test_the_encoding_is_detected(here, read, encoding, word):
    here("a.csv", lines(f"x,{word},y", lambda n: f"{n},{word},{n % 2}").encode(encoding))
    block = read("csv:a.csv")
    assert set(block[word]) == {word}
    assert ("data.encoding" in notes("csv:a.csv")) == (encoding != "utf-8-sig")
    assert set(read("csv:a.csv", encoding=encoding)[word]) == {word}


def test_an_encoding_that_is_not_clear_is_refused_with_the_byte_and_read_when_it_is_named(here, read):
    here("a.csv", lines("x,s,y", lambda n: f"{n},Москва,{n % 2}").encode("cp1251"))
    assert all(
        word in problem("csv:a.csv") for word in ("a.csv", "byte 8 (line 2, 0xcc)", "data.encoding=cp1252")
    )
    assert set(read("csv:a.csv", encoding="cp1251")["s"]) == {"Москва"}
    assert "data.encoding='utf-9' is no encoding" in problem("csv:a.csv", encoding="utf-9")


def test_a_byte_behind_the_sample_is_refused_by_file_and_position(here, read, small_samples):
    content = lines("x,s,y", lambda n: f"{n},aaaa,0", 500).encode()
    here(
        "a.csv",
        content.replace(b"310,aaaa", b"310,aa\xe9a"),
    )
    at = content.index(b"310,aaaa") + 6
    assert f"a.csv' is not utf-8 at byte {at} (line 312, 0xe9)" in problem("csv:a.csv")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (
            "5.1,3.5,Iris-setosa\n4.9,3.0,Iris-setosa\n7.0,3.2,Iris-virginica\n",
            ["column_1", "column_2", "column_3"],
        ),
        ("p,x,s\nx,x,s\np,s,s\nx,p,p\n", ["column_1", "column_2", "column_3"]),
        ("name,colour\np,x\nx,s\n", ["name", "colour"]),
        ("country,2019,2020\nA,1.5,2.5\nB,1.25,2.0\n", ["country", "2019", "2020"]),
        ("0,1,2\n1.5,2.5,7\n1.25,2.0,8\n", ["0", "1", "2"]),
        ("a,1\n1.5,p\n2.5,n\n", ["a", "1"]),
    ],
)
def test_whether_there_is_a_header_is_detected_or_given(here, read, content, names):
    here("a.csv", content)
    assert list(read("csv:a.csv")) == names
    assert ("data.header" in notes("csv:a.csv")) == (names[0] == "column_1")
    assert list(read("csv:a.csv", header=False)) == [f"column_{at + 1}" for at in range(len(names))]


@pytest.mark.parametrize(
    ("header", "row", "names", "note"),
    [
        (",x,y", "{n},1,a", ["x", "y"], "numbers the rows"),
        (",x,y", "{n}.5,1,a", ["column_1", "x", "y"], "named column_1"),
        (",x,y", "Mazda {n},1,a", ["column_1", "x", "y"], "named column_1"),
        ("x,y", '"{n}",1,a', ["x", "y"], "numbers the rows"),
        ("x,y,,", "1,a,,", ["x", "y"], "2 columns without a name and without values"),
        ("x,y", "1,a,", ["x", "y"], "without values"),
        ("x,,y", "1,2,a", ["x", "column_2", "y"], "named column_2"),
        ("x,y,x", "1,a,2", ["x", "y", "x_2"], "columns 1 and 3 are both named 'x'"),
    ],
)
def test_columns_without_a_name_or_with_anothers_are_left_out_or_named_with_a_note(
    here, read, header, row, names, note
):
    here("a.csv", lines(header, lambda n: row.format(n=n)))
    assert list(read("csv:a.csv")) == names
    assert note in notes("csv:a.csv")


def test_an_empty_column_without_a_name_is_kept_where_a_later_cell_has_a_value(here, read, small_samples):
    here("a.csv", lines("x,y,", lambda n: f"{n},a,{'5' if n == 437 else ''}", 600))
    np.testing.assert_array_equal(read("csv:a.csv")["column_3"][436:438], [np.nan, 5])


def test_a_label_that_is_a_whole_number_in_yaml_names_a_column():
    assert DataConfig(label=1).label == "1"


def test_spaces_after_delimiters_belong_to_no_cell(here, read):
    here("a.csv", lines("age, name, work, y", lambda n: f'{n}, "Smith, {n}", State-gov, <=50K'))
    block = read("csv:a.csv")
    assert list(block) == ["age", "name", "work", "y"]
    assert block["age"].dtype == np.int64
    assert (block["name"][3], block["work"][0], block["y"][0]) == ("Smith, 3", "State-gov", "<=50K")


def test_files_of_a_source_are_written_alike_or_the_odd_one_is_named(here, read):
    here("d/a.csv", "x,y\n1,0\n2,1\n")
    here("d/b.csv", "x;y\n1;0\n2;1\n")
    assert all(word in problem("csv:d") for word in ("b.csv", "';'", "a.csv", "','"))
    here("e/a.csv", "x,y\n1,0\n2,1\n")
    here("e/b.csv", "1,0\n2,1\n")
    assert all(word in problem("csv:e") for word in ("b.csv", "looks like data", "data.header"))
    here("f/a.csv", "x;y\n1;0\n2;1\n")
    here("f/b.csv", "x;y\n")  # a header alone
    assert read("csv:f")["x"].tolist() == [1, 2]


# Types of CSV columns.


def test_leading_zeros_make_a_column_text_unless_it_is_given_as_a_number(here, read):
    here("a.csv", lines("zip,x,y", lambda n: f"{n * 700:05},0.{n},0"))
    block = read("csv:a.csv")
    assert block["zip"][:2].tolist() == ["00000", "00700"]
    assert block["x"].dtype == np.float64
    assert block["y"].dtype == np.int64
    assert "'zip' is text" in notes("csv:a.csv")
    assert read("csv:a.csv", columns=(("zip", "number"),))["zip"][1] == 700


def test_given_kinds_are_read_as_text_or_left_out_and_an_unknown_column_is_refused(here, read):
    here("a.csv", lines("code,x,y", lambda n: f"{n},{n}.50,0"))
    block = read("csv:a.csv", columns=(("code", "category"), ("x", "text"), ("y", "drop")))
    assert list(block) == ["code", "x"]
    assert (block["code"][1], block["x"][1]) == ("1", "1.50")
    message = problem("csv:a.csv", columns=(("cod", "text"),))
    assert all(word in message for word in ("'cod'", "did you mean 'code'", "code, x, y"))


@pytest.mark.parametrize(
    ("usual", "odd", "expected"),
    [
        ("{n}", "0.5", [0.0, 0.5]),
        ("{n}", "n/a", [0.0, np.nan]),
        ("{n}", "12 EUR", ["0", "12 EUR"]),
        ("{n}.5", "?", ["0.5", "?"]),
        ("10{n:03}", "00501", ["10000", "00501"]),
        ("10{n:03}", "7", [10000, 7]),
        ('"{n},5"', "?", ["0,5", "?"]),
        ("", "3", [np.nan, 3.0]),
        ("", "text", [None, "text"]),
        ("true", "maybe", ["true", "maybe"]),
        ("2020-01-01", "unknown", ["2020-01-01", "unknown"]),
    ],
)
def test_a_cell_that_samples_do_not_show_changes_the_type_of_the_whole_column(
    here, read, small_samples, usual, odd, expected
):
    rows = [usual.format(n=n) + f",a,{n % 2}" for n in range(600)]
    rows[437] = f"{odd},a,1"
    here("a.csv", "\n".join(["x,s,y", *rows]) + "\n")
    block = read("csv:a.csv")
    found = block["x"][[0, 437]]
    if isinstance(expected[1], str):
        assert found.tolist() == expected
        assert all(value is None or isinstance(value, str) for value in block["x"])
    else:
        np.testing.assert_array_equal(found, expected)
        assert block["x"].dtype.kind in "if"
    assert block["y"].tolist() == [n % 2 for n in range(600)]


def test_a_type_that_changes_in_one_split_changes_in_all(here, read, small_samples):
    here("d/train.csv", lines("x,y", lambda n: f"{n},0", 600))
    here("d/test.csv", lines("x,y", lambda n: ("odd" if n == 437 else f"{n}") + ",0", 600))
    assert all(isinstance(value, str) for value in read("csv:d")["x"])


def test_a_column_that_is_a_number_in_one_file_and_text_in_another_is_text(here, read):
    here("d/a.csv", "x,y\n1,0\n2,1\n")
    here("d/b.csv", "x,y\nq,0\n4,1\n")
    assert read("csv:d")["x"].tolist() == ["1", "2", "q", "4"]


def test_a_chunks_contradiction_names_its_column_and_can_be_pickled(here, small_samples):
    here("a.csv", lines("x,y", lambda n: ("odd" if n == 437 else f"{n}") + ",0", 600))
    part = open_source("csv:a.csv").parts[0]
    read_chunk = pickle.loads(cloudpickle.dumps(part.chunks().read))  # as a task receives it
    with pytest.raises(OtherTypesError) as caught:
        list(read_chunk(0))
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.column == "x"
    assert "data.columns={x: text}" in str(error)
    part.relearn(error)
    assert next(part.chunks().read(0))["x"].dtype == object


def test_na_is_a_value_among_codes_of_two_letters_and_missing_elsewhere(here, read):
    codes = itertools.cycle(["AF", "NA", "EU", "AS"])
    here(
        "a.csv", lines("code,s,x,y", lambda n: f"{next(codes)},{'NA' if n else 'word'},{'NA' if n else 5},0")
    )
    block = read("csv:a.csv")
    assert block["code"][:4].tolist() == ["AF", "NA", "EU", "AS"]
    assert block["s"][:2].tolist() == ["word", None]
    np.testing.assert_array_equal(block["x"][:2], [5, np.nan])
    assert "data.missing=[NA]" in notes("csv:a.csv")
    assert read("csv:a.csv", missing=("NA",))["code"][1] is None
    assert read("csv:a.csv", missing=("AF",))["code"][:2].tolist() == [None, "NA"]


def test_cells_with_line_ends_are_read_alike_where_a_block_ends_in_them(here, read, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 300)
    monkeypatch.setattr(csv_files, "BATCH_BYTES", 300)
    here("a.csv", lines("s,x,y", lambda n: f'"line {n}\nnext, ""{n}""\n",{n},{n % 2}', 300))
    block = read("csv:a.csv")
    assert block["s"].tolist() == [f'line {n}\nnext, "{n}"\n' for n in range(300)]
    assert block["x"].tolist() == list(range(300))


# Where files lie.


def test_compressed_files_and_members_of_archives_are_read(here, read):
    content = lines("x,y", lambda n: f"{n},0")
    here("a.csv.gz", gzip.compress(content.encode()))
    here("b.json.gz", gzip.compress(b'{"x": 1}\n{"x": 2}\n'))
    with zipfile.ZipFile("c.zip", "w") as archive:
        for name in ("train.csv", "test.csv", "README.md"):
            archive.writestr(name, content)
    with tarfile.open("d.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("in/a.csv")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content.encode()))
    for uri in ("csv:a.csv.gz", "csv:d.tar.gz"):
        assert read(uri)["x"].tolist() == list(range(ROWS))
    assert read("json:b.json.gz")["x"].tolist() == [1, 2]
    assert read("csv:c.zip")["x"].tolist() == 2 * list(range(ROWS))
    assert [part.split for part in open_source("csv:c.zip").parts] == ["train", "test"]
    here("e.zip", b"PK nothing")
    assert all(word in problem("csv:e.zip") for word in ("e.zip", "unpack it"))


def test_files_of_another_kind_in_a_folder_are_left_out_with_a_note(here, read):
    here("d/a.csv", "x,y\n1,0\n2,1\n")
    here("d/README.md", "# Data\nFrom the lab.\n")
    assert read("csv:d")["x"].tolist() == [1, 2]
    assert "README.md': left out" in notes("csv:d")
    here("e/part-00000", "x,y\n1,0\n2,1\n")
    assert read("csv:e")["x"].tolist() == [1, 2]


def test_hive_partitions_are_columns(here, read):
    for year, x in (("2020", 1), ("2021", 2)):
        here(f"d/year={year}/kind=a%20b/part.csv", f"x,y\n{x},0\n")
        folder = here(f"p/year={year}/.keep", "").parent
        pq.write_table(pa.table({"x": [x], "y": [0]}), folder / "part.parquet")
    block = read("csv:d")
    assert (block["year"].tolist(), block["kind"].tolist(), block["x"].tolist()) == (
        [2020, 2021],
        ["a b"] * 2,
        [1, 2],
    )
    assert read("parquet:p")["year"].tolist() == [2020, 2021]


# Nested values.


NESTED = [{"u": {"x": 1, "home": {"z": 0.5}}, "y": "a"}, {"u": None, "y": "b"}]


def test_objects_become_dotted_columns_in_every_kind_of_file(here, read):
    here("l.jsonl", "\n".join(map(json.dumps, NESTED)) + "\n")
    here("a.json", json.dumps(NESTED))
    pq.write_table(pa.Table.from_pylist(NESTED), "p.parquet")
    for uri in ("json:l.jsonl", "json:a.json", "parquet:p.parquet"):
        block = read(uri)
        assert set(block) == {"u.x", "u.home.z", "y"}
        np.testing.assert_array_equal(block["u.x"].astype(float), [1, np.nan])
        np.testing.assert_array_equal(block["u.home.z"].astype(float), [0.5, np.nan])


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array([["a"], ["b"]]), "lists of texts"),
        (pa.array([[{"q": 1}], [{"q": 2}]]), "lists of objects"),
        (pa.array([[("k", 1)], [("k", 2)]], pa.map_(pa.string(), pa.int64())), "maps"),
    ],
)
def test_what_makes_no_features_is_refused_by_name_type_and_remedy(here, read, column, what):
    pq.write_table(pa.table({"v": column, "y": [0, 1]}), "a.parquet")
    with pytest.raises(DataError, match=rf"column 'v' .* {what} .*data.columns=\{{v: drop\}}"):
        read("parquet:a.parquet")
    assert list(read("parquet:a.parquet", columns=(("v", "drop"),))) == ["y"]


def test_a_missing_list_is_refused_by_its_row_and_file(here, read):
    table = pa.table({"v": [[1.0, 2.0]] * 7 + [None] + [[1.0, 2.0]], "y": range(9)})
    pq.write_table(table, "a.parquet", row_group_size=3)
    with pytest.raises(DataError, match=r"column 'v' has no list in row 8 of '.*a.parquet'"):
        read("parquet:a.parquet")


def test_chat_messages_are_left_as_they_are(here, read):
    row = {"messages": [{"role": "user", "content": "hi"}]}
    here("a.jsonl", (json.dumps(row) + "\n") * 2)
    assert list(read("json:a.jsonl")["messages"][0]) == row["messages"]


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("{'x': 1}\n{'x': 2}\n", ["a.json", "line 1 has single quotes", "json.dumps"]),
        ('{"x": 1}\n{"x": 2\n', ["a.json", "line 2 is no JSON"]),
        ('{"x": [1, 2], "y": [0, 1]}\n', ["a.json", "one object of columns", "orient='records'"]),
        ('{"x": 1}\n3\n', ["a.json", "line 2 is no object but a int"]),
        ('{"x": 1}\n{"x": "a"}\n', ["a.json", "key 'x' holds a number in some rows and a string in others"]),
    ],
)
def test_what_is_no_json_is_refused_by_file_line_and_cause(here, content, pieces):
    here("a.json", content)
    assert all(piece in problem("json:a.json") for piece in pieces), problem("json:a.json")


def test_a_file_that_does_not_read_is_named_among_others(here):
    here("d/b.parquet", "not parquet")
    pq.write_table(pa.table({"x": [1]}), "d/a.parquet")
    assert "b.parquet" in problem("parquet:d")
    here("e/a.csv", "x,y\n1,0\n2,1\n")
    here("e/b.csv", "x,y\n1,0\n2,1,5\n3,1\n")
    assert all(word in problem("csv:e") for word in ("b.csv", "row 3 has 3 cells where 2 are expected"))


def test_the_size_of_a_source_is_that_of_its_decoded_rows(here):
    pq.write_table(pa.table({"x": np.zeros(100_000), "s": ["same"] * 100_000}), "a.parquet")
    assert open_source("parquet:a.parquet").nbytes > 1_600_000
    here("a.csv.gz", gzip.compress(lines("x,y", lambda n: "1,0", 100_000).encode()))
    assert open_source("csv:a.csv.gz").nbytes > 400_000


# NumPy's files.


def test_arrays_are_named_by_column_and_split(here, read):
    np.savez("a.npz", x_train=np.zeros((3, 2)), y_train=[0, 1, 0], x_test=np.ones((2, 2)), y_test=[1, 1])
    assert "data.arrays={train.features: x_train" in problem("npz:a.npz")
    keras = (("train.x", "x_train"), ("train.y", "y_train"), ("test.x", "x_test"), ("test.y", "y_test"))
    block = read("npz:a.npz", arrays=keras)
    assert block["x"].shape == (5, 2)
    source = open_source("npz:a.npz", options=ReadOptions(arrays=keras))
    assert [part.split for part in source.parts] == ["train", "test"]
    assert "did you mean 'x_train'" in problem("npz:a.npz", arrays=(("x", "x_trian"),))
    assert "split" in problem("npz:a.npz", arrays=(("train.x", "x_train"), ("y", "y_train")))


def test_structured_and_big_endian_arrays_become_native_columns(here, read):
    np.save(
        "a.npy", np.array([(1, 2.5, "a"), (2, 3.5, "b")], dtype=[("a", ">i4"), ("b", ">f4"), ("c", "U3")])
    )
    block = read("npz:a.npy")
    assert block["a"].dtype == np.int32
    assert block["b"].tolist() == [2.5, 3.5]
    assert block["c"].tolist() == ["a", "b"]


def test_npy_files_of_a_folder_are_arrays_of_their_names_and_a_table_has_numbered_columns(here, read):
    here("d/.keep", "")
    np.save("d/features.npy", np.zeros((3, 2)))
    np.save("d/target.npy", np.arange(3))
    assert {name: column.shape for name, column in read("npz:d").items()} == {
        "features": (3, 2),
        "target": (3,),
    }
    np.save("a.npy", np.arange(6).reshape(2, 3))
    assert read("npz:a.npy")["column_3"].tolist() == [2, 5]
    np.save("b.npy", np.zeros((2, 3, 4)))
    assert "features.npy and target.npy" in problem("npz:b.npy")


def test_an_array_that_holds_no_rows_of_values_is_named(here):
    np.savez("a.npz", x=np.zeros(3), mean=3.5)
    assert "array 'mean'" in problem("npz:a.npz")
    np.savez("b.npz", x=np.zeros(3), o=np.array([{}, 1, None], dtype=object))
    assert "array 'o'" in problem("npz:b.npz")


# Files that are no plain tables.


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_titles_before_the_header_are_left_out_and_it_is_said(delimiter, read, here):
    def row(*values):
        return delimiter.join(map(str, values))

    rows = [row(number, number / 2, "ab"[number % 2]) for number in range(ROWS)]
    here("a.csv", "\n".join(["Sales of 2024", "", "from: the office", row("x", "z", "y"), *rows]))
    found = read("csv:a.csv")
    assert list(found) == ["x", "z", "y"]
    assert found["x"].tolist() == list(range(ROWS))
    assert "its first 3 lines are no rows: left out" in notes("csv:a.csv")


def test_a_header_that_is_shorter_than_the_rows_is_no_title(read, here):
    here("a.csv", lines("a,b,c", lambda number: f"{number},1,2,3,4"))
    with pytest.raises(DataError, match="cells where"):
        read("csv:a.csv")


def test_a_header_that_begins_like_a_comment_names_the_columns(read, here):
    here(
        "a.tsv",
        lines("# written by a tool\n#chrom\tstart\tend", lambda number: f"chr1\t{number}\t{number + 9}"),
    )
    assert list(read("csv:a.tsv")) == ["#chrom", "start", "end"]


@pytest.mark.parametrize("header", ["", "   sepal   petal  name\n"])
def test_columns_of_a_fixed_width_are_divided_by_blanks(header, read, here):
    here("a.txt", header + "".join(f" {number:>6}   {number / 4:<8}\t'x'  \n" for number in range(ROWS)))
    found = read("csv:a.txt")
    assert list(found) == (["sepal", "petal", "name"] if header else ["column_1", "column_2", "column_3"])
    first, second, _ = found.values()
    assert first.tolist() == list(range(ROWS))
    assert second.tolist() == [number / 4 for number in range(ROWS)]
    assert "cells are divided by blanks" in notes("csv:a.txt")


def test_tabs_between_texts_of_several_words_stay_the_delimiter(read, here):
    here("a.tsv", lines("when\twhat", lambda number: f"2024-01-{1 + number % 28:02} 10:00:00\tone word"))
    assert list(read("csv:a.tsv")) == ["when", "what"]


def test_rows_without_any_value_at_the_end_are_left_out_and_it_is_said(read, here):
    here("a.csv", lines("x,z,y", lambda number: f"{number},,{number % 2}") + ",,\n" * 5)
    found = read("csv:a.csv")
    assert found["x"].tolist() == list(range(ROWS))
    assert found["x"].dtype == np.int64
    assert "rows without any value are left out" in notes("csv:a.csv")


@pytest.mark.parametrize("scheme", ["csv", "parquet"])
def test_texts_that_repeat_and_texts_that_do_not_are_read_alike(scheme, read, here):
    count = 3 * arrow.LOOKED_AT
    texts = [None if number % 7 == 0 else f"t{number % 5}" for number in range(count - 1)] + [
        "last, seen once"
    ]
    table = pa.table(
        {"town": texts, "name": [f"n{number}" for number in range(count)], "target": [0, 1] * (count // 2)}
    )
    if scheme == "csv":
        pa.csv.write_csv(table, "a.csv")
    else:
        pq.write_table(table, "a.parquet", row_group_size=5000)
    found = read(f"{scheme}:a.{scheme}")
    assert found["town"].tolist() == texts
    assert found["name"].tolist() == table["name"].to_pylist()
    assert len({id(text) for text in found["town"][:1000]}) <= 6


def test_a_key_that_the_beginning_of_a_json_file_does_not_have_is_named_with_its_line(
    read, here, monkeypatch
):
    monkeypatch.setattr(json_files, "BLOCK_BYTES", 400)
    rows = [
        {"x": number, "target": number % 2} | ({"late": 1} if number == 90 else {}) for number in range(100)
    ]
    here("a.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"a\.jsonl' has a key 'late', first in line 91"):
        read("json:a.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"PK\x03\x04rest", "an Excel workbook"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PAR1rest", "parquet:"),
        (b"\x1f\x8b\x08rest", "name it .gz"),
    ],
)
@pytest.mark.parametrize("scheme", ["csv", "json"])
def test_a_file_of_another_format_is_named_for_what_it_is(tmp_path, scheme, content, said):
    (tmp_path / f"rows.{scheme}").write_bytes(content)
    with pytest.raises(DataError, match=rf"rows\.{scheme}' is .*{said}"):
        open_source(f"{scheme}:{tmp_path}/rows.{scheme}")


def test_rows_that_never_end_are_named(tmp_path):
    (tmp_path / "rows.csv").write_text("x,y")
    with pytest.raises(DataError, match=r"rows\.csv'.* holds no rows, or a quote"):
        joined(open_source(f"csv:{tmp_path}/rows.csv"))
