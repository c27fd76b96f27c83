"""Leaks that a bounded look finds: rows in two splits, and columns that alone predict the label."""

import numpy as np
import pytest

from shoal.data.glance import KEPT_HASHES, Glance
from shoal.data.sampler import SPLITS, TEST, TRAIN
from shoal.data.statistics import ColumnStats

DRAW = np.random.default_rng(0)


def look(block, split, parts=4):
    """Glance at several blocks."""
    found = None
    for rows in np.array_split(np.arange(len(split)), parts):
        one = Glance.of({name: column[rows] for name, column in block.items()}, split[rows], "y")
        found = one if found is None else found.merge(one)
    return found


def splits(train, test):
    return np.array([SPLITS.index(TRAIN)] * train + [SPLITS.index(TEST)] * test)


@pytest.mark.parametrize(("train", "test"), [(400, 100), (KEPT_HASHES * 3, KEPT_HASHES)])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_test_rows_that_are_training_rows_too_are_counted_and_the_label_does_not_hide_them(
    train, test, share
):
    numbers = DRAW.normal(size=(train + test, 3))
    copied = int(test * share)
    numbers[train : train + copied] = numbers[:copied]
    block = {"a": numbers[:, 0], "b": numbers[:, 1:], "y": np.arange(train + test) % 2}
    found = {one.split: one.share for one in look(block, splits(train, test)).duplicates()}
    assert found.get(TEST, 0.0) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("as_columns", [False, True])
def test_different_rows_of_small_whole_numbers_are_no_leak(as_columns):
    pixels = np.unique(DRAW.integers(0, 17, (1800, 64)), axis=0).astype(np.float64)
    block = {str(place): pixels[:, place] for place in range(64)} if as_columns else {"pixels": pixels}
    train = len(pixels) * 3 // 4
    assert look(block, splits(train, len(pixels) - train)).duplicates() == []


def test_values_that_repeat_by_chance_are_no_leak():
    block = {"a": DRAW.integers(0, 5, 500), "y": np.zeros(500)}
    assert look(block, splits(400, 100)).duplicates() == []


def test_a_column_that_is_the_label_in_other_words_is_suspected_and_an_honest_one_is_not():
    label = DRAW.integers(0, 3, 600)
    block = {
        "copy": np.array(["red", "green", "blue"], dtype=object)[label],
        "scaled": label * 10.0 + DRAW.normal(0, 0.1, 600),
        "useful": label + DRAW.normal(0, 1.0, 600),
        "noise": DRAW.normal(size=600),
        "y": label,
    }
    found = look(block, splits(600, 0)).suspects("y", is_classification=True)
    assert {one.column for one in found} == {"copy", "scaled"}


def test_a_column_is_not_suspected_where_one_class_is_nearly_all_rows():
    label = (np.arange(1000) % 100 == 0).astype(int)
    block = {"noise": DRAW.normal(size=1000), "y": label}
    assert look(block, splits(1000, 0)).suspects("y", is_classification=True) == []


def test_a_number_that_follows_from_one_column_is_suspected():
    label = DRAW.normal(size=800)
    block = {"same": label * 3 + 1, "near": label + DRAW.normal(0, 0.5, 800), "y": label}
    found = look(block, splits(800, 0)).suspects("y", is_classification=False)
    assert [one.column for one in found] == ["same"]


def test_what_is_kept_does_not_grow_with_the_rows():
    small, large = (
        look({"a": DRAW.normal(size=n), "y": np.zeros(n)}, splits(n, 0)) for n in (10_000, 100_000)
    )
    assert len(large.hashes[TRAIN]) == KEPT_HASHES
    assert len(large.rows["a"]) == len(small.rows["a"])


def outlying(values):
    fitted = ColumnStats.of(values, "t").fit("t")
    block = {"t": values, "y": np.arange(len(values)) % 2}
    return look(block, splits(len(values), 0)).outlying([fitted])


def test_dates_that_stand_for_none_are_named_where_they_leave_no_room_for_the_others():
    days = np.datetime64("2020-01-01") + DRAW.integers(0, 90, 400)
    assert outlying(days) == []
    days[17], days[18] = np.datetime64("9999-12-31"), np.datetime64("0001-01-01")
    assert outlying(days) == [], "their statistics leave both out"
    days[17:20] = ["2020-01-01", "2020-01-01", "1753-01-01"]
    [found] = outlying(days)
    assert (found.column, found.value) == ("t", "1753-01-01")
    assert found.width < 0.1


@pytest.mark.parametrize("place", [0, 1], ids=["seen", "beyond the rows that are kept"])
def test_a_number_that_is_far_from_the_others_is_found_by_what_it_does_to_them(place):
    numbers = DRAW.normal(size=20_000)
    numbers[place] = 1e9
    [found] = outlying(numbers)
    assert found.value == (None if place else "1000000000.0")


def test_a_number_that_stands_for_missing_ones_is_found_however_many_rows_have_it():
    for share in (0.02, 0.1, 0.4):
        numbers = np.where(DRAW.random(2000) < share, -9999.0, DRAW.normal(size=2000))
        [found] = outlying(numbers)
        assert found.value == "-9999.0"


def test_heavy_tails_constants_and_rare_values_are_no_outliers():
    assert outlying(DRAW.lognormal(sigma=3.0, size=2000)) == []
    assert outlying(DRAW.pareto(1.0, size=2000)) == []
    assert outlying(np.full(400, 7.0)) == []
    assert outlying(np.where(DRAW.random(2000) < 0.005, 9999.0, 0.0)) == []
