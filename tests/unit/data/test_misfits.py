"""Cells of other data that a fitted transform cannot use are counted, and refused where they are most of a column."""

import numpy as np
import pytest

from shoal.data.cells import Reading
from shoal.data.labels import Label
from shoal.data.misfits import Misfits
from shoal.data.preprocessing import Column, Transform
from shoal.errors import DataError

NUMBER, COMMA = Column(name="x", kind="number"), Column(name="x", kind="number", reading=Reading(decimal=","))
COLOR = Column(name="x", kind="category", dtype="object", categories=("blue", "red"))


def cells(*values):
    return np.array([*values, None], dtype=object)[:-1]


def found_in(column, *blocks):
    misfits = Misfits(Transform(columns=(column,), label=Label(name="y")))
    for block in blocks:
        misfits.add({"x": block})
    misfits.check()
    return misfits.lines()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (NUMBER, np.arange(30)),
        (NUMBER, cells(*["1.5", "?", None, 3] * 10)),
        (COMMA, cells(*["1,5", "2.000,25"] * 10)),
        (COMMA, np.linspace(0, 1, 30)),  # numbers already
        (COLOR, cells(*["red", "blue", None] * 10)),
    ],
)
def test_cells_that_fit_or_are_missing_are_not_named(column, values):
    assert found_in(column, values) == []


def test_the_share_that_cannot_be_used_is_said_with_an_example():
    [line] = found_in(NUMBER, cells(*["1"] * 30), cells(*["2"] * 8, "two", "1,5"))
    assert (
        line
        == "2 of 40 cells (5%) of column 'x' cannot be read as a number (e.g. 'two'): they count as missing"
    )
    [line] = found_in(COLOR, cells(*["red"] * 9, "teal"))
    assert "are none of the 2 values of training (e.g. 'teal'): they count as other values" in line


@pytest.mark.parametrize(("column", "values"), [(NUMBER, ["1,5", "0,25"]), (COLOR, ["teal", "pink"])])
def test_a_column_that_is_mostly_of_no_use_is_refused(column, values):
    with pytest.raises(DataError, match="40 of 40 cells"):
        found_in(column, cells(*values * 20))
