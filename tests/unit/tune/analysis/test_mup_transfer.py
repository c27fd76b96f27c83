"""What a transfer saves, by hand; and which configs of one are refused."""

import pytest

from shoal.errors import ConfigError
from shoal.models.flops import training_flops
from shoal.storage.records import TrialRow
from shoal.tune.analysis.mup_transfer import (
    Cost,
    Savings,
    busy_seconds,
    compare_point,
    cost_of,
    gap,
    predict_savings,
    transfer_figure,
)
from shoal.workflows.transfer import load_transfer


def trial(number, rate, metric, flops, training_s):
    metadata = {"point": number, "parameters": 10, "flops": flops, "training_s": training_s}
    return TrialRow(number, "t", "finished", {"optim.lr": rate}, metric, 1, 9.0, 0.0, 1.0, (), **metadata)


ROWS = [trial(0, 0.001, 0.9, 300, 1.0), trial(1, 0.01, 0.5, 300, 2.0), trial(2, 0.1, 0.8, 100, 0.5)]


SEEDS = [(0, 0.01, 0.4), (0, 0.01, 0.6), (1, 0.1, 0.3), (1, 0.1, 0.9)]


def test_training_takes_three_times_the_operations_of_a_forward_pass():
    assert training_flops(flops_per_sample=34_000, samples=1426) == 3 * 34_000 * 1426


def test_seconds_of_training_leave_out_waiting():
    assert busy_seconds(10.0, {"data": 0.1, "compute": 0.5}) == pytest.approx(6.0)


def test_a_search_costs_what_its_trials_took_as_far_as_they_went():
    assert cost_of(ROWS) == Cost(flops=700, seconds=3.5)
    assert cost_of([trial(0, 0.1, None, None, None)]) == Cost(0, 0.0)  # it left no outcome


def test_the_search_at_the_target_width_is_predicted_from_the_growth_and_the_wide_runs_own_speed():
    # 16 times the operations a sample; the wide run made 4800 operations in 12 s, 400 a second
    savings = predict_savings(cost_of(ROWS), 16.0, Cost(4800, 12.0))
    assert savings.direct == Cost(700 * 16, 700 * 16 / 400)
    assert savings.whole == Cost(700 + 4800, 3.5 + 12.0)
    assert savings.flops_factor == pytest.approx(11200 / 5500)
    assert savings.seconds_factor == pytest.approx(28.0 / 15.5)
    assert not savings.is_measured
    assert list(savings.by_name()) == ["search", "training", "whole", "direct_search"]


def test_the_gap_is_how_much_worse_the_transferred_run_is_whichever_way_is_better():
    assert gap(0.75, 0.5, "min") == 0.25
    assert gap(0.75, 1.0, "max") == 0.25
    assert gap(0.25, 0.5, "min") == -0.25


def test_points_are_compared_by_the_mean_of_their_seeds_not_by_the_luckiest():
    rows = [trial(point, rate, metric, 1, 1.0) for point, rate, metric in SEEDS]
    assert compare_point(rows, {"optim.lr": 0.01}, 9.0, "min")[0] == pytest.approx(0.5)
    best = compare_point(rows, {"optim.lr": 0.01}, 9.0, "min")[1]
    assert (best.params, best.mean) == ({"optim.lr": 0.01}, pytest.approx(0.5))
    assert compare_point(rows, {"optim.lr": 0.1}, 9.0, "min")[0] == pytest.approx(0.6)
    assert compare_point(rows, {"optim.lr": 0.5}, 9.0, "min")[0] == 9.0


@pytest.mark.parametrize("trials", [{64.0: ROWS}, {64.0: ROWS, 1024.0: ROWS}])
def test_the_picture_has_a_curve_per_width_the_transferred_run_and_the_flops_of_both_ways(trials):
    savings = Savings(Cost(700, 3.5), Cost(4800, 12.0), Cost(11200, 28.0), is_measured=len(trials) > 1)
    figure = transfer_figure(trials, "optim.lr", (1024.0, 0.01, 0.4), savings, "val/loss", "min")
    curves, bars = figure.axes
    *widths, transferred = curves.lines
    best = {row.params["optim.lr"]: row.metric for row in ROWS}
    assert len(widths) == len(trials)
    for line in widths:
        assert dict(zip(*line.get_data(), strict=True)) == best
    assert transferred.get_xydata().tolist() == [[0.01, 0.4]]
    assert (curves.get_xlabel(), curves.get_ylabel(), curves.get_xscale()) == ("optim.lr", "val/loss", "log")
    heights = {
        text.get_text(): bar[0].get_height()
        for text, bar in zip(bars.get_legend().get_texts(), bars.containers, strict=True)
    }
    assert heights == {"search": 700, "training": 4800, "search at the target width": 11200}
    assert bars.containers[1][0].get_y() == 700
    how = "measured" if savings.is_measured else "predicted"
    assert how in bars.get_xticklabels()[-1].get_text()


def test_rates_about_the_configs_own_are_swept_at_its_width_in_mup():
    config = load_transfer(None, ["model.width=64", "optim.lr=0.001"], "model.width=1024")
    assert config.space == {
        "optim.lr": "grid(6.25e-05, 0.000125, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)"
    }
    narrow, wide = config.at(64), config.at(1024, "name")
    assert (narrow.model.parametrization, narrow.model.base_width, narrow.model.width) == ("mup", 64, 64)
    assert (wide.model.parametrization, wide.model.base_width, wide.model.width) == ("mup", 64, 1024)
    assert wide.run_name == "name"


def test_a_base_width_and_a_parametrization_that_were_given_stand():
    settings = [
        "model.width=256",
        "model.base_width=32",
        "model.parametrization=standard",
        "optim.lr=0.1,0.2",
    ]
    config = load_transfer(None, settings, "model.width=1024", compare=True)
    assert (config.model.parametrization, config.model.base_width, config.model.width) == ("standard", 32, 32)
    assert config.space == {"optim.lr": "grid(0.1, 0.2)"}
    assert config.compare


def test_the_trial_at_the_target_width_differs_from_that_at_the_base_width_by_the_width_alone():
    config = load_transfer(None, ["model.width=64", "track.registered_model_name=wide"], "model.width=512")
    narrow, wide = (config.at(width).trial({"optim.lr": 0.01}, name="t") for width in (64, 512))
    assert narrow.replace({"model.width": 512}) == wide
    assert wide.track.registered_model_name is None  # what a sweep finds best on the way is no product


@pytest.mark.parametrize(
    ("settings", "to", "pieces"),
    [
        ([], "optim.lr=0.1", ["--to optim.lr=0.1", "write --to model.width=1024"]),
        (["model.width=64"], "model.width=64", ["target width is 64 and the base width 64", "--to model.width=512"]),
        (["model.width=32,64"], "model.width=512", ["model.width is swept (grid(32, 64))", "model.width=64"]),
        ([], "model.width=wide", ["target_width='wide'", "valid integer"]),
        (["optim.lr=-1"], "model.width=512", ["optim.lr=-1", "greater than 0"]),
        (["model=3"], "model.width=512", ["'model' is 3", "section"]),
    ],
)  # fmt: skip
def test_what_cannot_be_transferred_is_refused_with_the_reason(settings, to, pieces):
    with pytest.raises(ConfigError) as caught:
        load_transfer(None, settings, to)
    assert all(piece in str(caught.value) for piece in pieces), caught.value
