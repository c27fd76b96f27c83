"""Groups of rows by what columns hold: values, quarters, missing cells."""

import numpy as np
import pandas as pd
import pytest

from shoal.data.dataset_info import inspect_source
from shoal.data.sources.function import source_from_value
from shoal.registry.slices import MOST_VALUES, SliceColumns


@pytest.fixture
def divide(preprocessing):
    """Fit a transform to rows, as training does, and divide the same rows, read in two blocks."""

    def make(**columns):
        source = source_from_value("mine:rows", columns)
        found = SliceColumns(inspect_source(source, preprocessing()).transform)
        for half in (slice(0, 70), slice(70, None)):
            found.add({name: values[half] for name, values in columns.items()})
        return {column.name: column for column in found.divided()}

    return make


def groups(column):
    return {label: int((column.codes == number).sum()) for number, label in enumerate(column.labels)}


def test_few_values_make_a_group_each_and_numbers_their_quarters(divide, rows):
    found = divide(**rows)
    assert groups(found["color"]) == pd.Series(rows["color"]).value_counts().to_dict()
    assert groups(found["target"]) == {str(value): int((rows["target"] == value).sum()) for value in (0, 1)}
    first, *_, last = found["size"].labels
    assert set(groups(found["size"]).values()) == {30}
    edge = float(first.removeprefix("at most "))
    assert (rows["size"][found["size"].codes == 0] <= edge + 1e-4).all()
    assert last.startswith("more than ")


def test_missing_cells_are_a_group_and_few_numbers_are_values(divide, rows):
    count = np.where(np.arange(120) % 3 == 0, np.nan, np.arange(120) % 4)
    found = divide(**{**rows, "count": count})
    assert groups(found["count"]) == {"0": 20, "1": 20, "2": 20, "3": 20, "missing": 40}


def test_a_constant_and_many_different_texts_divide_nothing(divide, rows):
    texts = np.array([f"{number % (MOST_VALUES + 1)}" for number in range(120)], dtype=object)
    found = divide(**{**rows, "color": texts.astype("U2").astype(object) + "x", "count": np.ones(120)})
    assert set(found) == {"size", "target"}
