"""Ranking, aggregating and tabulating trials, on rows made by hand."""

import io
import random

import pandas as pd
import pytest

from shoal.storage.records import TrialRow
from shoal.tune.trials import Ranking, best, cells, is_log, limits, points, ranked, to_table, varying


def trial(number, metric, status="finished", params=None, **more):
    fields = {"steps": 10, "seconds": 1.0, "started_s": 0.0, "ended_s": 1.0, "curve": ((10, 0.5),)}
    fields |= {"point": number}
    return TrialRow(number, f"t{number:04d}", status, params or {}, metric, **(fields | more))


def test_only_finished_and_stopped_trials_with_a_finite_metric_are_ranked_best_first():
    rows = [
        trial(0, 3.0),
        trial(1, 1.0, "stopped"),
        trial(2, 0.1, "failed"),
        trial(3, 0.1, "killed"),
        trial(4, 0.1, "running"),
        trial(5, None),
        trial(6, float("nan")),
        trial(7, float("-inf")),
        trial(8, 2.0),
    ]
    assert [row.number for row in ranked(rows, "min")] == [1, 8, 0]
    assert [row.number for row in ranked(rows, "max")] == [0, 8, 1]
    assert best(rows, "min") is rows[1]
    assert best(rows, "max") is rows[0]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_equal_metrics_rank_by_number_whichever_way_is_better(mode):
    rows = [trial(2, 1.0), trial(0, 1.0), trial(1, 1.0)]
    assert [row.number for row in ranked(rows, mode)] == [0, 1, 2]


def test_there_is_no_best_before_a_trial_has_ended():
    assert best([trial(0, None, "running")], "min") is None
    assert best([], "min") is None


def test_a_point_is_the_mean_and_sample_deviation_of_its_seeds():
    rows = [
        trial(0, 1.0, point=0, repeat=0, params={"lr": 0.1}),
        trial(1, 3.0, point=0, repeat=1, params={"lr": 0.1}),
        trial(2, 1.5, point=1, params={"lr": 0.2}),
    ]
    first, second = points(rows, "min")
    assert (first.point, first.mean, first.std, first.count, first.numbers) == (1, 1.5, 0.0, 1, (2,))
    assert (second.point, second.mean, second.count, second.numbers) == (0, 2.0, 2, (0, 1))
    assert second.std == pytest.approx(2**0.5)
    assert second.params == {"lr": 0.1}
    assert [point.point for point in points(rows, "max")] == [0, 1]


@pytest.mark.parametrize("status", ["failed", "running", "pending", "killed", "infeasible"])
def test_a_point_counts_only_when_all_of_its_seeds_do(status):
    rows = [trial(0, 1.0, point=0), trial(1, None, status, point=0), trial(2, 2.0, point=1)]
    assert [point.point for point in points(rows, "min")] == [1]


def test_a_cell_is_the_mean_over_seeds_and_the_best_over_other_params():
    rows = [
        trial(0, 1.0, point=0, params={"lr": 0.1, "act": ["a"], "depth": 1}),
        trial(1, 2.0, point=0, params={"lr": 0.1, "act": ["a"], "depth": 1}),
        trial(2, 1.8, point=1, params={"lr": 0.1, "act": ["a"], "depth": 2}),
        trial(3, 0.1, point=2, params={"lr": 0.2}),
        trial(4, None, "infeasible", point=3, params={"lr": 0.3, "act": ["a"]}),
    ]
    assert cells(rows, ("lr", "act"), "min") == {(0.1, "['a']"): 1.5}
    assert cells(rows, ("lr", "act"), "max") == {(0.1, "['a']"): 1.8}


def test_varying_params_are_those_with_two_values_lists_among_them():
    rows = [
        trial(0, 1.0, params={"a": 1, "b": [1], "c": 1}),
        trial(1, 1.0, params={"a": 1, "b": [2], "c": 2}),
    ]
    assert varying(rows) == ["b", "c"]


def test_the_table_survives_csv_and_parquet_with_params_of_mixed_type_and_absent_ones():
    rows = [
        trial(0, 1.0, params={"lr": 0.1, "width": 64, "size": 1, "flag": True, "layers": [1, 2]}),
        trial(1, None, "failed", params={"lr": 1, "size": "auto", "flag": False}, error="E: <b>"),
    ]
    table = to_table(rows)
    stream = io.BytesIO()
    table.to_parquet(stream)
    back = pd.read_parquet(stream)
    assert list(back["number"]) == [0, 1]
    assert list(back["size"]) == ["1", "auto"]
    assert list(back["lr"]) == [0.1, 1.0]
    assert list(back["flag"]) == [True, False]
    assert back["layers"][0] == "[1, 2]"
    assert back["width"][0] == 64
    assert back[["width", "metric", "layers"]].loc[1].isna().all()
    assert back["error"][1] == "E: <b>"
    lines = table.to_csv(index=False).splitlines()
    assert len(lines) == 3
    assert ",64," in lines[1], "a whole number stays one though another trial lacks it"
    assert "curve" not in table


def test_the_table_of_no_trials_has_its_columns_and_can_be_written():
    table = to_table([])
    assert len(table) == 0
    assert {"number", "status", "metric"} <= set(table)
    table.to_parquet(io.BytesIO())


def test_a_param_never_replaces_a_column_of_the_trial():
    table = to_table([trial(0, 1.0, params={"name": "x", "metric": 7.0})])
    assert list(table["name"]) == ["t0000"]
    assert list(table["metric"]) == [1.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e-4, 1e-1], True),
        ([0.001, 0.003, 0.01, 0.03], True),
        ([32, 64, 128], True),
        ([1, 2, 3, 4], False),
        ([0.0, 0.5], False),
        ([-1.0, 1.0], False),
        ([5.0], False),
        ([0.005, *(step / 20 for step in range(1, 11))], False),  # uniform from about 0, though it spans 100x
    ],
)
def test_long_and_geometric_ranges_have_a_log_axis(values, expected):
    assert is_log(values) is expected


def test_limits_cut_off_diverged_trials_and_nothing_else():
    assert limits([1.0, 2.0, 3.0, 4.0], "min") == (1.0, 4.0)
    assert limits([1.0, 2.0, 3.0, 1e9, 1e9], "min") == (1.0, 9.0)
    assert limits([0.9, 0.8, 0.7, -1e9], "max") == pytest.approx((0.3, 0.9))
    assert limits([1.0, 1.0, 1.0, 5.0], "min") == (1.0, 5.0)
    assert limits([2.0], "max") == (2.0, 2.0)


def test_a_trial_loses_once_others_are_better_and_all_seeds_of_its_point_have_ended():
    """The first seed of what turns out to be the best point ends before the second, and is kept till then."""
    ranking = Ranking("min", repeat=2, keep=1)
    assert ranking.add(trial(0, 0.3, point=0)) == []
    assert ranking.add(trial(1, 0.3, point=0, repeat=1)) == [1]
    assert ranking.add(trial(2, 0.1, point=1)) == []
    assert ranking.add(trial(4, None, "infeasible", point=2)) == []
    assert ranking.add(trial(5, 0.2, "killed", point=2, repeat=1)) == [], "it goes on in the next attempt"
    assert ranking.add(trial(3, 0.2, point=1, repeat=1)) == [0, 3]
    assert ranking.best
    assert ranking.best.number == 2
    single = Ranking("max", repeat=1, keep=1)
    assert [single.add(trial(number, value)) for number, value in enumerate((0.1, 0.3, 0.2))] == [
        [],
        [0],
        [2],
    ]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("keep", [1, 4])
def test_the_trials_that_are_kept_are_the_best_of_those_that_have_ended(mode, repeat, keep):
    """The same as by sorting all rows after each trial, in whatever order they end."""
    rng = random.Random(repeat + keep)
    for _ in range(20):
        rows = [
            trial(n, rng.choice([1.0, 2.0, rng.random(), float("nan")]), rng.choice(["finished", "failed", "stopped"]),
                  point=n // repeat, repeat=n % repeat)
            for n in range(8 * repeat)
        ]  # fmt: skip
        rng.shuffle(rows)
        ranking, lost = Ranking(mode, repeat, keep), set[int]()
        for count, row in enumerate(rows, 1):
            lost |= set(ranking.add(row))
            done = rows[:count]
            complete = [one for one in done if sum(other.point == one.point for other in done) == repeat]
            place = {point.point: number for number, point in enumerate(points(complete, mode))}
            order = sorted(ranked(complete, mode), key=lambda one: place.get(one.point, len(place)))
            assert lost == {one.number for one in complete} - {one.number for one in order[:keep]}
            assert ranking.best == best(done, mode)
