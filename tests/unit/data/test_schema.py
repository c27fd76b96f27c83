"""What columns are understood as, whatever the blocks they come in, and the lines that say so."""

import sys

import numpy as np
import pandas as pd
import pytest

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.preprocessing import BUCKETS, DEFAULTS, ColumnOptions
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.schema import column_notes, fit_columns
from shoal.data.sources.arrow import to_array
from shoal.data.sources.base import in_memory_source
from shoal.data.sources.open import open_source
from shoal.data.statistics import MOST_DISTINCT, ColumnStats
from shoal.errors import DataError, ShoalError

DRAW = np.random.default_rng(0)


def cells(*values):
    return np.array([*values, None], dtype=object)[:-1]


def understood(values, options=DEFAULTS, name="x", parts=3):
    """Fit a column from several blocks; returns (column, summaries)."""
    stats = None
    for part in np.array_split(values, parts):
        found = ColumnStats.of(part, name=name, options=options)
        stats = found if stats is None else stats.merge(found, name)
    [column], [summaries] = fit_columns({name: stats}, options, "csv:d.csv")
    return column, summaries


def refusal(*arguments, **named):
    with pytest.raises(ShoalError) as caught:
        understood(*arguments, **named)
    return str(caught.value)


def test_a_column_is_a_number_when_nearly_all_cells_are_and_the_odd_ones_are_counted():
    values = cells(*[f"{number / 7:.3f}" for number in range(100)], "?", "-", "12 apples", None)
    column, summaries = understood(values)
    assert column.kind == "number"
    assert column.has_missing
    assert (summaries.missing, summaries.unreadable, summaries.odd) == (3, 1, "12 apples")
    features = column.features(cells("7", "?", "12 apples"))
    np.testing.assert_array_equal(features[:, 1], [0, 1, 1])
    [line] = column_notes([summaries], 104)
    assert "1 of 104 cells are not (e.g. '12 apples')" in line
    assert "data.columns={x: category}" in line


def test_the_mean_and_std_of_text_are_those_of_its_numbers():
    numbers = DRAW.normal(5, 2, 300).round(3)
    as_text, _ = understood(cells(*[f"{number:.3f}".replace(".", ",") for number in numbers]))
    plain, _ = understood(numbers)
    assert as_text.reading.decimal == ","
    assert (as_text.mean, as_text.std) == (pytest.approx(plain.mean), pytest.approx(plain.std))


def test_codes_with_leading_zeros_are_a_category():
    column, summaries = understood(cells(*["007", "012", "100"] * 20))
    assert column.categories == ("007", "012", "100")
    assert summaries.kind == "category"


def test_the_text_none_is_another_category_than_a_missing_value():
    column, _ = understood(cells(*["None", "a", None] * 10))
    np.testing.assert_array_equal(column.features(cells("None", None)), [[1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("count", "kind"), [(100, "category"), (101, "hashed"), (MOST_DISTINCT * 2, "hashed")]
)
def test_a_text_column_of_many_values_is_hashed_and_says_so(count, kind):
    column, summaries = understood(cells(*[f"v{number}" for number in range(count)] * 2))
    assert column.kind == kind
    assert summaries.distinct == pytest.approx(count, rel=0.1)
    assert column.features(cells("v1")).shape == (1, BUCKETS if kind == "hashed" else count + 1)
    assert bool(column_notes([summaries], count * 2)) == (kind == "hashed")


def test_what_is_kept_of_many_values_does_not_grow_with_them():
    stats = ColumnStats.of(cells(*map(str, map(hash, map(str, range(3 * MOST_DISTINCT))))))
    assert stats.text.counts is None
    assert len(stats.text.sketch.hashes) <= 1024


def test_prose_is_read_word_by_word():
    prose = [f"the quick fox number {number} jumps over the dog" for number in range(300)]
    column, _ = understood(cells(*prose))
    assert column.kind == "words"
    one, other = column.features(cells("The FOX", "fox the"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("rows", np.arange(5, 105), True),  # row numbers, whatever they are called
        ("customer_id", DRAW.permutation(100_000)[:300], True),
        ("population", DRAW.permutation(100_000)[:300], False),
        ("id", DRAW.normal(size=300), False),
        ("userId", cells(*[f"u{number:04d}" for number in range(300)]), True),
        ("count", DRAW.integers(0, 5, 300), False),
    ],
)
def test_ids_and_row_numbers_are_named(name, values, expected):
    _, summaries = understood(values, name=name)
    assert summaries.looks_like_an_id == expected
    assert (
        any(f"data.columns={{{name}: drop}}" in line for line in column_notes([summaries], 300)) == expected
    )


def test_columns_without_a_value_are_named():
    _, summaries = understood(np.full(50, None, dtype=object))
    assert column_notes([summaries], 50) == [
        "column 'x' has no value in any training row: set data.columns={x: drop}"
    ]


def test_constants_are_named():
    _, summaries = understood(np.full(50, 3))
    assert column_notes([summaries], 50) == ["column 'x' has the same value in all training rows"]


def test_a_column_is_what_the_config_says():
    numbers = np.tile([1, 2, 3], 20)
    column, _ = understood(numbers, ColumnOptions({"x": "category"}))
    assert column.categories == ("1", "2", "3")
    np.testing.assert_array_equal(column.features(np.array([2.0])), [[0, 1, 0, 0]])
    column, _ = understood(cells(*["10", "20"] * 20), ColumnOptions({"x": "category"}))
    assert column.kind == "category"
    column, _ = understood(cells(*["1,5", "2,25"] * 20), ColumnOptions({"x": "number"}, decimal=","))
    assert column.mean == pytest.approx(1.875)
    assert "data.columns says that 'x' is a date" in refusal(cells("a", "b"), ColumnOptions({"x": "date"}))
    assert "data.columns says that 'x' is a number" in refusal(
        cells("a", "b"), ColumnOptions({"x": "number"})
    )
    assert "data.columns drops every column" in refusal(numbers, ColumnOptions({"x": "drop"}))
    assert "data.columns names 'xx', which is no column" in refusal(numbers, ColumnOptions({"xx": "number"}))


def test_numbers_whose_variance_overflows_are_refused_with_the_remedy():
    assert "take their logarithm" in refusal(np.array([1e308, -1e308, 1e300]))


def test_an_infinite_number_counts_as_missing_and_is_said():
    column, summaries = understood(np.array([1.0, 2.0, np.inf, np.nan, 3.0]), parts=1)
    assert column.mean == 2.0
    assert (summaries.missing, summaries.unreadable, summaries.odd) == (1, 1, "inf")


@pytest.mark.parametrize("as_text", [True, False])
def test_a_date_that_means_no_end_does_not_blur_the_others(as_text):
    days = np.arange("2020-01-01", "2020-04-10", dtype="datetime64[D]").astype("datetime64[us]")
    dates = np.append(days, np.datetime64("9999-12-31", "us"))
    values = cells(*map(str, dates.astype("datetime64[D]"))) if as_text else dates
    column, summary = understood(values)
    assert column.is_date
    assert summary.missing == 0
    features = column.features(values)
    assert features.shape == (101, 1)
    np.testing.assert_allclose(features[:-1].std(), 1, atol=1e-3)
    assert features[-1, 0] == 10


def test_a_category_of_numbers_is_a_category_in_training_and_prediction():
    values = to_array(pd.Series(pd.Categorical([10, 20, 30, None] * 20)))
    column, summary = understood(values)
    assert (column.categories, summary.missing) == (("10", "20", "30"), 20)
    np.testing.assert_array_equal(column.features(np.array([20])), [[0, 1, 0, 0]])


def test_lists_and_bytes_have_no_form_as_a_category():
    with pytest.raises(DataError, match="holds bytes"):
        ColumnStats.of(cells(b"a", b"b"), "x")
    with pytest.raises(DataError, match="values of type dict"):
        ColumnStats.of(cells({"a": 1}), "x")
    with pytest.raises(DataError, match="lists of texts"):
        ColumnStats.of(np.array([["a", "b"]]), "x")


def test_a_block_without_values_takes_the_kind_of_the_others():
    column, summaries = understood(np.concatenate([cells(None, None), cells(*range(10))]), parts=6)
    assert column.kind == "number"
    assert summaries.missing == 2


@pytest.mark.parametrize("scheme", ["csv", "parquet", "function"])
def test_texts_and_numbers_that_mean_missing_count_as_missing_in_every_source(scheme, here, monkeypatch):
    rows = 60
    frame = pd.DataFrame(
        {
            "level": np.where(np.arange(rows) % 6 == 0, -200, np.arange(rows) % 7),
            "town": np.where(
                np.arange(rows) % 5 == 0, "unknown", np.where(np.arange(rows) % 2, "Oslo", "Rome")
            ),
            "target": np.arange(rows) % 2,
        }
    )
    here("mine.py", "import pandas\nframe = lambda: pandas.read_pickle('a.pkl')\n")
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    frame.to_csv("a.csv", index=False)
    frame.to_parquet("a.parquet")
    frame.to_pickle("a.pkl")
    data = DataConfig(
        source="mine:frame" if scheme == "function" else f"{scheme}:a.{scheme}",
        missing=["-200", "unknown"],
        validation_fraction=0,
        test_fraction=0,
        global_batch_size=8,
    )
    source = open_source(data.source, options=data.read_options)
    info = inspect_source(source, PreprocessingSpec(data, 0, is_classification=True, is_ready=False))
    level, town = info.transform.columns
    assert {column.name: column.missing for column in info.columns} == {"level": 10, "town": 12}
    assert town.categories == ("Oslo", "Rome")
    assert level.has_missing
    for column in (level, town):  # at prediction, where rows come as they are
        assert not column.misfits(frame[column.name].to_numpy()).any()
    assert level.features(frame["level"].to_numpy())[:, 1].sum() == 10
    assert town.features(frame["town"].to_numpy(object))[:, -1].sum() == 12


def test_a_question_mark_among_categories_is_missing_and_said():
    values = np.array(["Private", "?", "State", "Private"] * 10, dtype=object)
    column, summary = understood(values)
    notes = column_notes([summary], 40)
    assert column.categories == ("Private", "State")
    assert summary.missing == 10
    assert notes == ["column 'x': 10 of 40 cells are missing ('?' among them)"]
    kept, _ = understood(values, ColumnOptions(missing=("none",)))
    assert kept.categories == ("?", "Private", "State")


def test_a_dropped_column_that_a_function_does_not_return_is_refused(here, monkeypatch):
    rows = "lambda: {'x': np.arange(9.0), 'size': np.arange(9), 'target': np.arange(9) % 2}"
    here("other.py", f"import numpy as np\nrows = {rows}\n")
    monkeypatch.syspath_prepend(".")
    data = DataConfig(
        source="other:rows", columns={"sise": "drop"}, validation_fraction=0, global_batch_size=2
    )
    with pytest.raises(
        DataError, match=r"data.columns names 'sise', which is no column.*did you mean 'size'"
    ):
        inspect_source(
            open_source(data.source), PreprocessingSpec(data, 0, is_classification=True, is_ready=False)
        )


def test_a_column_of_objects_may_be_dropped():
    block = {
        "x": np.arange(20.0),
        "meta": np.array([{"a": [1]}] * 20, dtype=object),
        "target": np.arange(20) % 2,
    }
    data = DataConfig(
        source="mine:rows", columns={"meta": "drop"}, validation_fraction=0, global_batch_size=2
    )
    spec = PreprocessingSpec(data, 0, is_classification=True, is_ready=False)
    info = inspect_source(in_memory_source("mine:rows", block), spec)
    assert [column.name for column in info.transform.columns] == ["x"]
