"""What each figure of a sweep shows, read back from its axes, or None where the trials cannot make one."""

import io
from itertools import product

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from shoal.plots.figure import to_png
from shoal.storage.records import TrialRow
from shoal.tune.report.plots import (
    ParamAxis,
    best_over_time,
    best_over_trials,
    heatmap,
    importance_bars,
    learning_curves,
    parallel_coordinates,
)


def trial(number, params, metric, status="finished"):
    curve = tuple((step, metric + 2.0 / step) for step in (10, 20, 40)) if metric is not None else ()
    ended = None if metric is None else 20.0 * number + 15
    metadata = (40, 12.5, 20.0 * number, ended, curve)
    return TrialRow(number, f"t{number:04d}", status, params, metric, *metadata, point=number)


@pytest.fixture
def grid():
    """16 trials of rate and width, two of them infeasible and one diverged."""
    rows = []
    for number, (width, rate) in enumerate(product([32, 64, 128, 256], [0.001, 0.003, 0.01, 0.03])):
        metric = 0.1 + 0.05 * abs(np.log10(rate) + 2) + 1 / width
        is_infeasible = width > 64 and rate == 0.03
        metric = None if is_infeasible else 1e6 if number == 3 else float(metric)
        status = "infeasible" if is_infeasible else "stopped" if rate == 0.001 else "finished"
        rows.append(trial(number, {"optim.lr": rate, "model.width": width}, metric, status))
    return rows


@pytest.fixture
def scattered():
    """60 random trials of five params, one of which only some have."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(60):
        params = {
            "optim.lr": float(10 ** draw.uniform(-5, -1)),
            "model.width": int(draw.choice([32, 64, 128])),
            "model.dropout": float(draw.uniform(0, 0.5)),
            "optim.name": str(draw.choice(["adam", "sgd"])),
        }
        if params["optim.name"] == "sgd":
            params["optim.momentum"] = float(draw.uniform(0.5, 0.99))
        rows.append(trial(number, params, float(draw.uniform(0.5, 0.99))))
    return rows


BEST = to_hex("tab:red")


def drawn(figure):
    """The figure's first axes, after everything was laid out once as it is for the PNG."""
    assert figure is not None
    figure.canvas.draw()
    return figure.axes[0]


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    return labels(figure.legends[0].get_texts()) if figure.legends else []


def offsets(axes, color):
    """Places of the dots whose edge has a colour."""
    return [
        tuple(place)
        for dots in axes.collections
        if len(dots.get_edgecolors()) and to_hex(dots.get_edgecolors()[0]) == color
        for place in dots.get_offsets().data.tolist()
    ]


def test_a_full_grid_is_a_matrix_of_its_metrics_with_the_best_cell_framed_and_bright(grid):
    figure = heatmap(grid, "optim.lr", "model.width", "val/loss", "min")
    axes = drawn(figure)
    (image,) = axes.images
    found = image.get_array().filled(np.nan)
    expected = np.array([np.nan if row.metric is None else row.metric for row in grid]).reshape(4, 4)
    np.testing.assert_array_equal(found, expected)
    assert labels(axes.get_xticklabels()) == ["0.001", "0.003", "0.01", "0.03"]
    assert labels(axes.get_yticklabels()) == ["32", "64", "128", "256"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optim.lr", "model.width")
    (frame,) = axes.patches
    assert frame.get_xy() == (1.5, 2.5), "around the rate 0.01 at width 256"
    assert to_hex(frame.get_edgecolor()) == BEST
    brightness = image.to_rgba(image.get_array())[..., :3].sum(axis=2)
    assert np.nanargmax(np.where(np.isnan(expected), np.nan, brightness)) == 14


def test_each_cell_of_a_small_matrix_has_its_metric_written_in(grid):
    axes = drawn(heatmap(grid, "optim.lr", "model.width", "val/loss", "min"))
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(written) == sum(row.metric is not None for row in grid)
    assert written[2, 3] == "0.104"
    assert written[3, 0] == "1e+06"


def test_one_diverged_trial_does_not_stretch_the_colours_of_the_heatmap(grid):
    figure = heatmap(grid, "optim.lr", "model.width", "val/loss", "min")
    (image,) = drawn(figure).images
    assert image.norm.vmax < 1
    shades = {tuple(color) for color in image.to_rgba(image.get_array()).reshape(-1, 4).round(3)}
    assert len(shades) > 8
    bar = figure.axes[1]
    assert bar.get_ylabel() == "val/loss"


def test_infeasible_trials_are_crossed_at_their_place_and_named_in_a_legend(grid):
    figure = heatmap(grid, "optim.lr", "model.width", "val/loss", "min")
    axes = drawn(figure)
    (crosses,) = axes.collections
    assert sorted(map(tuple, crosses.get_offsets().tolist())) == [(3, 2), (3, 3)]
    assert legend(figure) == ["infeasible"]
    feasible = [trial(row.number, row.params, row.metric or 0.5) for row in grid]
    figure = heatmap(feasible, "optim.lr", "model.width", "val/loss", "min")
    assert not drawn(figure).collections
    assert legend(figure) == []


@pytest.mark.parametrize(
    ("y", "scale", "ticks"),
    [
        ("model.dropout", "linear", None),
        ("model.width", "log", ["32", "64", "128"]),
        ("optim.name", "linear", ["adam", "sgd"]),
        ("optim.momentum", "linear", None),
    ],
)
def test_random_values_are_a_dot_for_each_trial_and_a_ring_around_the_best(scattered, y, scale, ticks):
    axes = drawn(heatmap(scattered, "optim.lr", y, "val/accuracy", "max"))
    paired = [row for row in scattered if y in row.params]
    dots, ring = axes.collections
    assert sorted(dots.get_offsets()[:, 0].tolist()) == sorted(row.params["optim.lr"] for row in paired)
    best = max(paired, key=lambda row: row.metric)
    assert offsets(axes, BEST)[0][0] == best.params["optim.lr"]
    assert len(ring.get_offsets()) == 1
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", scale)
    if ticks:
        assert labels(axes.get_yticklabels()) == ticks


def test_a_heatmap_needs_two_params_that_vary_and_a_metric(grid):
    one = [row for row in grid if row.params["model.width"] == 32]
    assert heatmap(one, "optim.lr", "model.width", "val/loss", "min") is None
    assert heatmap(grid, "optim.lr", "absent", "val/loss", "min") is None
    pending = [trial(row.number, row.params, None, "pending") for row in grid]
    assert heatmap(pending, "optim.lr", "model.width", "val/loss", "min") is None
    assert heatmap([], "optim.lr", "model.width", "val/loss", "min") is None


def test_learning_curves_are_one_for_each_trial_and_name_the_five_best_in_order(scattered):
    figure = learning_curves(scattered, "val/accuracy", "max")
    axes = drawn(figure)
    best = sorted(scattered, key=lambda row: -row.metric)[:5]
    assert legend(figure) == [f"{row.name}  {row.metric:.4g}" for row in best]
    assert len(axes.lines) == len(scattered)
    coloured = [line for line in axes.lines if line.get_color() != "gray"]
    assert [line.get_label() for line in coloured] == legend(figure)
    assert tuple(zip(*coloured[0].get_data(), strict=True)) == best[0].curve
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "val/accuracy")


def test_a_diverged_trial_does_not_stretch_the_axis_of_the_learning_curves(grid):
    axes = drawn(learning_curves(grid, "val/loss", "min"))
    assert len(axes.lines) == sum(row.metric is not None for row in grid)
    assert axes.get_ylim()[1] < 1000


def test_the_curve_of_a_trial_that_runs_is_drawn_without_a_name():
    running = TrialRow(0, "t0000", "running", {}, None, 20, 1.0, 0.0, None, ((10, 1.0), (20, 0.5)))
    figure = learning_curves([running], "val/loss", "min")
    (line,) = drawn(figure).lines
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == [1.0, 0.5]
    assert legend(figure) == []


def test_there_are_no_learning_curves_before_an_evaluation_of_finite_metric():
    assert learning_curves([], "val/loss", "min") is None
    row = TrialRow(0, "t0000", "failed", {}, None, 20, 1.0, 0.0, 1.0, ((10, float("nan")),))
    assert learning_curves([row], "val/loss", "min") is None


def test_parallel_coordinates_have_an_axis_for_each_varying_param_and_a_line_for_each_ranked_trial(scattered):
    axes = drawn(parallel_coordinates(scattered, "val/accuracy", "max"))
    names = ["optim.\nlr", "model.\nwidth", "model.\ndropout", "optim.\nname", "optim.\nmomentum"]
    assert sorted(labels(axes.get_xticklabels())) == sorted([*names, "val/accuracy"])
    across = [line for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(across) == len(scattered)
    heights = np.array([line.get_ydata() for line in across])
    unset = labels(axes.get_xticklabels()).index("optim.\nmomentum")
    lacking = sum("optim.momentum" not in row.params for row in scattered)
    assert (heights[:, unset] < 0).sum() == lacking > 0
    assert "unset" in texts(axes)
    assert across[-1].get_linewidth() == 3.0, "the best, drawn last"
    assert heights[-1, -1] == 1.0 == heights[:, -1].max()
    assert {"adam", "sgd"} <= set(texts(axes))


def test_parallel_coordinates_end_their_metric_at_its_limits_and_leave_infeasible_trials_out(grid):
    axes = drawn(parallel_coordinates(grid, "val/loss", "min"))
    across = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(across) == sum(row.metric is not None for row in grid)
    assert max(line.get_ydata()[-1] for line in across) == 1.0
    assert "1e+06" not in texts(axes)


def test_parallel_coordinates_need_two_params_that_vary(grid):
    one = [row for row in grid if row.params["model.width"] == 32]
    assert parallel_coordinates(one, "val/loss", "min") is None
    assert parallel_coordinates([], "val/loss", "min") is None


def test_importance_bars_are_as_long_as_the_shares_largest_on_top():
    axes = drawn(importance_bars({"model.width": 0.1, "optim.lr": 0.9}, "val/loss"))
    assert labels(axes.get_yticklabels()) == ["model.width", "optim.lr"]
    assert [bar.get_width() for bar in axes.patches] == [10, 90]
    assert texts(axes) == ["10%", "90%"]
    assert importance_bars({}, "val/loss") is None


def step_line(axes):
    """The places and values of the best so far."""
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-post"
    return line.get_xdata().tolist(), line.get_ydata().tolist()


def test_the_best_so_far_goes_down_with_the_trials_and_marks_those_stopped_early_and_beyond_the_axis(grid):
    figure = best_over_trials(grid, "val/loss", "min")
    axes = drawn(figure)
    done = [row for row in grid if row.metric is not None]
    numbers, best = step_line(axes)
    assert numbers == [row.number for row in done]
    assert best == np.minimum.accumulate([row.metric for row in done]).tolist()
    full, early, beyond = (dots.get_offsets() for dots in axes.collections)
    assert early[:, 0].tolist() == [row.number for row in done if row.status == "stopped"]
    assert beyond[:, 0].tolist() == [3], "the diverged one"
    assert len(full) + len(early) + len(beyond) == len(done)
    assert legend(figure) == ["ran to its end", "stopped early", "beyond the axis", "best so far"]
    assert axes.get_xlabel() == "trial"


def test_the_best_so_far_over_time_is_in_a_readable_unit(scattered):
    axes = drawn(best_over_time(scattered, "val/accuracy", "max"))
    minutes, best = step_line(axes)
    assert axes.get_xlabel() == "minutes since the sweep began"
    assert minutes == pytest.approx([row.ended_s / 60 for row in scattered])
    assert best == np.maximum.accumulate([row.metric for row in scattered]).tolist()


@pytest.mark.parametrize("draw", [best_over_trials, best_over_time])
def test_fewer_than_two_trials_have_no_best_so_far(draw, grid):
    assert draw(grid[:1], "val/loss", "min") is None
    assert draw([], "val/loss", "min") is None


def test_trials_without_an_end_are_left_out_over_time():
    rows = [TrialRow(n, f"t{n}", "finished", {}, 1.0, 1, 1.0, 0.0, None, ()) for n in range(3)]
    assert best_over_time(rows, "val/loss", "min") is None
    assert step_line(drawn(best_over_trials(rows, "val/loss", "min")))[0] == [0, 1, 2]


def test_metrics_over_a_long_span_are_on_a_log_axis_with_plain_numbers():
    rows = [trial(number, {}, 10.0**-number) for number in range(4)]
    axes = drawn(best_over_trials(rows, "val/loss", "min"))
    assert axes.get_yscale() == "log"
    assert {"0.001", "0.002", "0.005", "0.01"} <= set(labels(axes.get_yticklabels()))


def test_equal_metrics_can_be_drawn(grid):
    rows = [trial(row.number, row.params, 0.5) for row in grid]
    (image,) = drawn(heatmap(rows, "optim.lr", "model.width", "val/loss", "min")).images
    assert (image.get_array() == 0.5).all()
    lines = drawn(parallel_coordinates(rows, "val/loss", "min")).lines
    assert {line.get_ydata()[-1] for line in lines if len(line.get_xdata()) == 3} == {0.5}
    assert set(step_line(drawn(best_over_trials(rows, "val/loss", "min")))[1]) == {0.5}


def test_a_figure_becomes_a_png_of_its_size():
    image = Image.open(io.BytesIO(to_png(importance_bars({"optim.lr": 1.0}, "val/loss"))))
    assert image.format == "PNG"
    assert image.size == (880, 198)


def test_numbers_lie_to_scale_and_other_values_evenly_numbers_first():
    log = ParamAxis.of("lr", [0.1, 0.001, 0.01])
    assert log.is_log
    assert [log.share(value) for value in (0.001, 0.01, 0.1)] == pytest.approx([0, 0.5, 1])
    linear = ParamAxis.of("dropout", [0.0, 0.1, 0.5])
    assert linear.share(0.1) == pytest.approx(0.2)
    mixed = ParamAxis.of("size", ["auto", 2, None, True, 10])
    assert mixed.values == (2, 10, "None", "True", "auto")
    assert mixed.share(True) == pytest.approx(0.75)
    assert ParamAxis.of("same", [1]).share(1) == 0.5
