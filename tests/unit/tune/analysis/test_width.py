"""The width report on synthetic losses: parabolas in log2 of the rate, with a known optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest

from shoal.storage.records import TrialRow
from shoal.tune.analysis.width import width_figure, width_report

RATES = [2.0**power for power in range(-12, -2)]
WIDTHS = [64, 128, 256, 512]


def trials(optimum, rates=RATES, widths=WIDTHS, sign=1, noise=0.0):
    """Trials with a metric that is a parabola around `optimum(width)`."""
    draw = np.random.default_rng(0)
    rows = []
    for width in widths:
        for rate in rates:
            metric = sign * (1 + 0.1 * math.log2(rate / optimum(width)) ** 2) + draw.normal(0, noise)
            params = {"optim.lr": rate, "model.width": width}
            metadata = (1, 1.0, 0.0, 1.0, ())
            rows.append(TrialRow(len(rows), "t", "finished", params, metric, *metadata, point=len(rows)))
    return rows


def report(rows, mode="min"):
    return width_report(rows, "optim.lr", "model.width", mode)


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_a_constant_optimum_between_the_tried_rates_is_recovered_and_stable(mode, sign):
    found = report(trials(lambda width: 0.0113, sign=sign), mode)
    assert [optimum.width for optimum in found.optima] == WIDTHS
    assert [optimum.lr for optimum in found.optima] == pytest.approx([0.0113] * 4, rel=0.01)
    assert not any(optimum.at_edge for optimum in found.optima)
    assert found.slope == pytest.approx(0.0, abs=0.01)
    assert found.drift == "stable"
    assert found.text().splitlines()[-1] == "stable: one learning rate near 0.011 serves every width"


@pytest.mark.parametrize(
    ("power", "line"),
    [
        (-1.0, "drifts: the best learning rate halves every doubling of the width"),
        (-2 / 3, "drifts: the best learning rate halves every 1.5 doublings of the width"),
        (1.0, "drifts: the best learning rate doubles every doubling of the width"),
    ],
)
def test_an_optimum_that_moves_with_a_power_of_the_width_drifts_at_that_rate(power, line):
    found = report(trials(lambda width: 0.012 * (width / 181) ** power))
    assert found.slope == pytest.approx(power, abs=0.02)
    assert found.summary == line
    for optimum in found.optima:
        assert optimum.lr == pytest.approx(0.012 * (optimum.width / 181) ** power, rel=0.03)


def test_noise_moves_the_optimum_little():
    found = report(trials(lambda width: 0.0113, noise=0.02))
    assert found.drift == "stable"
    assert [optimum.lr for optimum in found.optima] == pytest.approx([0.0113] * 4, rel=0.25)


def test_rates_drawn_at_random_serve_as_well_as_a_grid():
    rates = [float(rate) for rate in 2 ** np.random.default_rng(1).uniform(-12, -2, 15)]
    found = report(trials(lambda width: 0.0113, rates=rates))
    assert [optimum.lr for optimum in found.optima] == pytest.approx([0.0113] * 4, rel=0.01)


def test_trials_that_diverged_beyond_the_best_do_not_pull_the_vertex():
    rows = [
        replace(row, metric=1e9 if row.params["optim.lr"] > 0.04 else row.metric)
        for row in trials(lambda width: 0.0113)
    ]
    assert [optimum.lr for optimum in report(rows).optima] == pytest.approx([0.0113] * 4, rel=0.02)


def test_an_optimum_beyond_the_tried_rates_is_at_the_edge_and_leaves_the_drift_unclear():
    found = report(trials(lambda width: 10.0))
    assert all(optimum.at_edge and optimum.lr == max(RATES) for optimum in found.optima)
    assert found.drift == "unclear"
    assert "0 of 4 widths" in found.summary
    assert found.text().count("at the edge") == 4


def test_widths_at_the_edge_are_counted_in_the_summary():
    found = report(trials(lambda width: 10.0 if width == 64 else 0.06))
    assert [optimum.at_edge for optimum in found.optima] == [True, False, False, False]
    assert found.summary.endswith("(1 at the edge)")


def test_optima_that_scatter_without_a_trend_are_unclear():
    found = report(trials(lambda width: {64: 0.05, 128: 0.002, 256: 0.002, 512: 0.05}[width]))
    assert found.drift == "unclear"
    assert "scatter" in found.summary


def test_fewer_than_three_rates_are_no_parabola():
    found = report(trials(lambda width: 0.0113, rates=[0.01, 0.02]))
    assert all(optimum.at_edge and optimum.parabola is None for optimum in found.optima)


def test_equal_metrics_are_no_optimum():
    rows = [replace(row, metric=1.0) for row in trials(lambda width: 0.01)]
    assert report(rows).drift == "unclear"


def test_there_is_no_report_without_two_widths():
    assert report([]) is None
    assert report(trials(lambda width: 0.01, widths=[64])) is None
    rows = [replace(row, params={"optim.lr": 0.1}) for row in trials(lambda width: 0.01)]
    assert report(rows) is None
    text = [replace(row, params=row.params | {"model.width": "wide"}) for row in rows]
    assert report(text) is None


def test_the_picture_has_a_curve_per_width_with_its_parabola_and_vertex():
    rows = trials(lambda width: 0.0113)
    found = report(rows)
    (axes,) = width_figure(found, rows, "val/loss").axes
    curves = [line for line in axes.lines if line.get_marker() == "o"]
    parabolas = [line for line in axes.lines if line.get_linestyle() == "--"]
    vertices = [line for line in axes.lines if line.get_marker() == "*"]
    assert [line.get_label() for line in curves] == [f"{optimum.width:g}" for optimum in found.optima]
    assert [line.get_xdata()[0] for line in vertices] == pytest.approx(
        [optimum.lr for optimum in found.optima]
    )
    for parabola, vertex in zip(parabolas, vertices, strict=True):
        assert vertex.get_ydata()[0] <= min(parabola.get_ydata()) + 1e-9
    assert axes.get_title() == found.summary
    assert axes.get_xscale() == "log"


def test_optima_at_the_edge_and_equal_metrics_are_drawn_without_a_vertex():
    for rows in (
        trials(lambda width: 10.0),
        [replace(row, metric=1.0) for row in trials(float)],
    ):
        found = report(rows)
        (axes,) = width_figure(found, rows, "val/loss").axes
        assert {line.get_marker() for line in axes.lines} == {"o"}
        assert len(axes.lines) == len(found.optima)
