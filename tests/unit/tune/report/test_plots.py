"""Each picture of a sweep is drawn, readable as an image and not blank, or refused with None."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from shoal.storage.records import TrialRow
from shoal.tune.report.plots import (
    _Axis,
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


def pixels(png, at_least=(600, 300)):
    """The pixels of a picture that is an image, large enough and not blank."""
    assert png is not None
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.width >= at_least[0]
    assert image.height >= at_least[1]
    found = np.asarray(image).astype(int)
    assert found.std() > 5
    return found


def count(image, color):
    return int((np.abs(image - np.array(color)).sum(axis=2) < 12).sum())


RED, YELLOW, GRAY = (214, 39, 40), (253, 231, 36), (127, 127, 127)


def test_a_full_grid_is_a_matrix_whose_best_cell_is_bright_and_framed(grid):
    image = pixels(heatmap(grid, "optim.lr", "model.width", "val/loss", "min"))
    assert count(image, YELLOW) > 5000, "the best cell is filled"
    assert count(image, RED) > 300


def test_one_diverged_trial_does_not_wash_the_heatmap_out(grid):
    """Drawn to scale, all but the diverged cell would have one colour."""
    image = pixels(heatmap(grid, "optim.lr", "model.width", "val/loss", "min"))
    shades, sizes = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    assert sum(size > 5000 for size in sizes) > 8


def test_infeasible_trials_are_crossed(grid):
    feasible = [trial(row.number, row.params, row.metric or 0.5) for row in grid]
    without = count(pixels(heatmap(feasible, "optim.lr", "model.width", "val/loss", "min")), RED)
    assert count(pixels(heatmap(grid, "optim.lr", "model.width", "val/loss", "min")), RED) > without


@pytest.mark.parametrize("y", ["model.dropout", "model.width", "optim.name", "optim.momentum"])
def test_random_values_are_scattered_on_axes_of_every_kind(scattered, y):
    pixels(heatmap(scattered, "optim.lr", y, "val/accuracy", "max"))


def test_a_heatmap_needs_two_params_that_vary_and_a_metric(grid):
    one = [row for row in grid if row.params["model.width"] == 32]
    assert heatmap(one, "optim.lr", "model.width", "val/loss", "min") is None
    assert heatmap(grid, "optim.lr", "absent", "val/loss", "min") is None
    pending = [trial(row.number, row.params, None, "pending") for row in grid]
    assert heatmap(pending, "optim.lr", "model.width", "val/loss", "min") is None
    assert heatmap([], "optim.lr", "model.width", "val/loss", "min") is None


def test_learning_curves_draw_the_best_in_colour_and_running_ones_too(grid, scattered):
    pixels(learning_curves(grid, "val/loss", "min"))
    pixels(learning_curves(scattered, "val/accuracy", "max"))
    running = TrialRow(0, "t0000", "running", {}, None, 20, 1.0, 0.0, None, ((10, 1.0), (20, 0.5)))
    pixels(learning_curves([running], "val/loss", "min"))


def test_there_are_no_learning_curves_before_an_evaluation_of_finite_metric():
    assert learning_curves([], "val/loss", "min") is None
    row = TrialRow(0, "t0000", "failed", {}, None, 20, 1.0, 0.0, 1.0, ((10, float("nan")),))
    assert learning_curves([row], "val/loss", "min") is None


def test_parallel_coordinates_draw_params_of_every_kind(grid, scattered):
    pixels(parallel_coordinates(grid, "val/loss", "min"))
    assert pixels(parallel_coordinates(scattered, "val/accuracy", "max")).shape[1] > 900


def test_parallel_coordinates_need_two_params_that_vary(grid):
    one = [row for row in grid if row.params["model.width"] == 32]
    assert parallel_coordinates(one, "val/loss", "min") is None
    assert parallel_coordinates([], "val/loss", "min") is None


def test_importance_bars_are_drawn_when_there_are_shares():
    pixels(importance_bars({"optim.lr": 0.9, "model.width": 0.1}, "val/loss"), (600, 150))
    assert importance_bars({}, "val/loss") is None


@pytest.mark.parametrize("draw", [best_over_trials, best_over_time])
def test_the_best_so_far_is_drawn_over_trials_and_time(draw, grid, scattered):
    pixels(draw(grid, "val/loss", "min"))
    pixels(draw(scattered, "val/accuracy", "max"))
    assert draw(grid[:1], "val/loss", "min") is None
    assert draw([], "val/loss", "min") is None


def test_trials_without_an_end_are_left_out_over_time():
    rows = [TrialRow(n, f"t{n}", "finished", {}, 1.0, 1, 1.0, 0.0, None, ()) for n in range(3)]
    assert best_over_time(rows, "val/loss", "min") is None
    pixels(best_over_trials(rows, "val/loss", "min"))


def test_equal_metrics_can_be_drawn(grid):
    rows = [trial(row.number, row.params, 0.5) for row in grid]
    pixels(heatmap(rows, "optim.lr", "model.width", "val/loss", "min"))
    pixels(parallel_coordinates(rows, "val/loss", "min"))
    pixels(best_over_trials(rows, "val/loss", "min"))


def test_numbers_lie_to_scale_and_other_values_evenly_numbers_first():
    log = _Axis.of("lr", [0.1, 0.001, 0.01])
    assert log.is_log
    assert [log.share(value) for value in (0.001, 0.01, 0.1)] == pytest.approx([0, 0.5, 1])
    linear = _Axis.of("dropout", [0.0, 0.1, 0.5])
    assert linear.share(0.1) == pytest.approx(0.2)
    mixed = _Axis.of("size", ["auto", 2, None, True, 10])
    assert mixed.values == (2, 10, "None", "True", "auto")
    assert mixed.share(True) == pytest.approx(0.75)
    assert _Axis.of("same", [1]).share(1) == 0.5
