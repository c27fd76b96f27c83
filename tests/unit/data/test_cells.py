"""Texts become numbers: amounts, percentages, dates and durations, as people write them."""

import numpy as np
import pytest

from shoal.data.cells import PLAIN, Reading, blanked, candidates, is_missing_text

SECONDS = 86400.0


def texts(*values):
    return np.array(values, dtype=object)


def best(*values, decimal=None):
    return candidates(texts(*values), decimal)[0]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2.5", "-3e2", " 4 "], [1, 2.5, -300, 4]),
        (["$1,200.50", "-$5", "(3,000)", "US"], [1200.5, -5, -3000, np.nan]),
        (["12 %", "7%", "0.5%"], [0.12, 0.07, 0.005]),
        (["EUR 12", "3.5 USD", "£4"], [12, 3.5, 4]),
        (["1 234", "12\u00a0345.5", "1'000"], [1234, 12345.5, 1000]),
        (["2,041", "-2,556", "0,418"], [2.041, -2.556, 0.418]),
        (["1.234,50 €", "12,00 €"], [1234.5, 12]),
        (["R$ 1.234,50", "R$ 12,00"], [1234.5, 12]),
        (["US$1,234.50", "US$12.00"], [1234.5, 12]),
        (["1.5-", "2.25"], [-1.5, 2.25]),
        (["10:30", "23:59:01", "1 day 00:00:01"], [37800, 86341, 86401]),
        (["1,23", "1,234,567", "12,34"], [1.23, np.nan, 12.34]),
        (["−5", "+6"], [-5, 6]),
    ],
)
def test_amounts_and_durations_are_read_as_they_are_meant(cells, expected):
    np.testing.assert_allclose(best(*cells).numbers(texts(*cells)), expected)


@pytest.mark.parametrize(
    ("cells", "days"),
    [
        (["31/12/2020", "01/02/2021"], [18627, 18659]),
        (["12/31/2020", "1/2/2021"], [18627, 18629]),
        (["2020-12-31", "2021-02-01"], [18627, 18659]),
        (["2020-12-31T00:00:00Z", "2021-02-01T12:00:00Z"], [18627, 18659.5]),
        (["31.12.2020 06:00", "01.02.2021 00:00"], [18627.25, 18659]),
        (["31 Dec 2020", "1 Feb 2021"], [18627, 18659]),
        (["Dec 31, 2020", "Feb 1, 2021"], [18627, 18659]),
        (["2020/12/31", "2021/02/01"], [18627, 18659]),
        (["31-Dec-20", "01-Feb-21"], [18627, 18659]),
        (["9999-12-31", "1816-03-29"], [2932896, -56160]),
    ],
)
def test_dates_in_usual_writings_are_seconds_since_1970(cells, days):
    found = best(*cells)
    assert found.kind == "date"
    np.testing.assert_allclose(found.numbers(texts(*cells)), np.array(days) * SECONDS)


@pytest.mark.parametrize("cells", [["red", "blue"], ["a1b2", "c3"], ["x" * 60] * 3, ["2020-13-45", "n"], []])
def test_words_are_no_numbers(cells):
    assert candidates(texts(*cells)) == ()


def test_a_plain_number_is_no_date_and_a_decimal_mark_that_is_set_is_the_only_one_tried():
    assert best("2020", "2021") == PLAIN
    assert {reading.decimal for reading in candidates(texts("1,5", "2,5"), ",")} == {","}
    assert candidates(texts("1,5", "2,75"), ".") == ()


def test_texts_for_a_missing_value_are_known_or_given():
    cells = texts("?", " NA ", "-", "", "3", "none", "n/a")
    assert is_missing_text(cells).tolist() == [True, True, True, True, False, True, True]
    assert is_missing_text(cells, ("3",)).tolist() == [False, False, False, True, True, False, False]


def test_a_reading_survives_json():
    reading = Reading(kind="date", format="%d/%m/%Y", is_ambiguous=True)
    assert Reading.model_validate_json(reading.model_dump_json()) == reading


def test_a_day_that_means_a_missing_value_is_one_at_any_time_of_it():
    times = np.array(["2020-01-01T08:00", "9999-12-31T23:59", "9999-12-31T00:00", "NaT"], "datetime64[us]")
    gone = np.isnat(blanked(times, ("9999-12-31", "-1")))
    assert gone.tolist() == [False, True, True, True]
    assert blanked(times, ("-1", "2020", "today")) is times
