"""The scaling law on losses of a known law."""

import math
from dataclasses import replace

import numpy as np
import pytest

from shoal.storage.records import TrialRow
from shoal.storage.run_folder import RunFolder
from shoal.tune.analysis.scaling_law import fit_power_law, scaling_figure, scaling_report
from shoal.tune.report.write import write_report

WIDTHS = [32, 64, 128, 256, 512, 1024]


def parameters(width):
    return 50 * width + width**2


def trials(loss, widths=WIDTHS, seeds=1, **changes):
    """At each width three rates; the best one is the middle one, with the loss `loss(parameters)`."""
    rows = []
    for width in widths:
        for number, rate in enumerate((0.001, 0.002, 0.004)):
            for repeat in range(seeds):
                metric = loss(parameters(width)) * (1.0 if number == 1 else 1.5) + 0.01 * (
                    repeat - (seeds - 1) / 2
                )
                row = TrialRow(
                    len(rows), "t", "finished", {"model.width": width, "optim.lr": rate}, metric, 1, 1.0, 0.0, 1.0, (),
                    repeat=repeat, point=len(rows) // seeds, parameters=parameters(width),
                    flops=6 * parameters(width) * 10_000,
                )  # fmt: skip
                rows.append(replace(row, **changes))
    return rows


def report(rows, mode="min"):
    return scaling_report(rows, "model.width", mode)


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.5])
def test_a_law_without_noise_is_recovered_to_the_digit(floor):
    sizes = np.geomspace(1e3, 1e7, 7)
    law = fit_power_law(sizes, 3.0 * sizes**-0.3 + floor)
    assert law.exponent == pytest.approx(0.3, rel=1e-3)
    assert law.scale == pytest.approx(3.0, rel=1e-2)
    assert law.floor == pytest.approx(floor, abs=1e-4)
    assert law.at(1e9) == pytest.approx(3.0 * 1e9**-0.3 + floor, rel=1e-3)


def test_four_widths_of_a_pure_power_get_no_floor_below_zero():
    sizes = np.geomspace(1e3, 1e5, 4)
    bent_the_other_way = [1.0, 0.7, 0.45, 0.25]  # falls ever faster, as only c < 0 would have it
    assert fit_power_law(sizes, bent_the_other_way).floor == 0.0


@pytest.mark.parametrize(
    ("count", "span", "share"),
    [
        (4, 64, 0.0),
        (6, 1024, 0.5),
        pytest.param(4, 64, 0.5, marks=pytest.mark.long),
        pytest.param(6, 1024, 0.0, marks=pytest.mark.long),
    ],
)
def test_the_interval_holds_the_exponent_about_as_often_as_it_says(count, span, share):
    draw, sizes = np.random.default_rng(0), 1e4 * np.geomspace(1, span, count)
    power = (sizes / sizes[0]) ** -0.3
    losses = power + share / (1 - share) * power[-1]
    intervals = [
        fit_power_law(sizes, losses * np.exp(draw.normal(0, 0.01, count))).interval for _ in range(60)
    ]
    held = sum(low <= 0.3 <= high for low, high in intervals)
    assert 48 <= held <= 60  # of 90%, 54 are due with a standard error of 2.3


def test_the_interval_comes_from_students_t_and_the_fits_covariance():
    # Without a floor it is a line in logs, whose slope's interval every textbook has.
    sizes, draw = np.geomspace(1e3, 1e6, 6), np.random.default_rng(3)
    logs = np.log(sizes) - np.log(sizes).mean()
    losses = np.exp(-0.3 * logs - 0.002 * logs**2 + draw.normal(0, 0.004, 6))  # bent down, so that c is 0
    law = fit_power_law(sizes, losses)
    slope, constant = np.polyfit(logs, np.log(losses), 1)
    residuals = np.log(losses) - constant - slope * logs
    spread = 2.1318 * math.sqrt(residuals @ residuals / 4 / (logs @ logs))  # t of 4 degrees of freedom at 95%
    assert law.floor == 0.0
    assert law.exponent == pytest.approx(-slope, rel=1e-3)
    assert law.interval == pytest.approx((-slope - spread, -slope + spread), rel=1e-2)


def test_one_width_that_went_wrong_does_not_bend_the_law():
    sizes = np.geomspace(1e3, 1e7, 8)
    losses = 3.0 * sizes**-0.3
    losses[1] *= 1.5
    line = -np.polyfit(np.log(sizes), np.log(losses), 1)[0]
    assert abs(line - 0.3) > 0.01
    assert abs(fit_power_law(sizes, losses).exponent - 0.3) < abs(line - 0.3) / 5


def test_the_largest_width_is_held_out_and_predicted():
    found = report(trials(lambda size: 2.0 * size**-0.25 + 0.05))
    by_size, by_flops = found.laws
    assert (by_size.symbol, by_flops.symbol, by_size.width) == ("N", "C", 1024)
    assert by_size.measured == pytest.approx(2.0 * parameters(1024) ** -0.25 + 0.05)
    assert by_size.error == pytest.approx(0.0, abs=1e-3)
    assert by_flops.law.exponent == pytest.approx(0.25, rel=1e-2)
    assert by_flops.law.scale == pytest.approx(2.0 * 60_000**0.25, rel=0.05)


def test_the_error_of_a_largest_width_off_the_law_is_reported():
    def stalls(size):
        return (2.0 * size**-0.25) * (1.25 if size == parameters(1024) else 1.0)

    law = report(trials(stalls)).laws[0]
    assert law.error == pytest.approx(1 / 1.25 - 1, abs=1e-3)
    assert law.text().endswith(f"predicted {law.predicted:.4g}, measured {law.measured:.4g} (-20.0%)")


def test_the_best_point_of_each_width_counts_in_the_mean_over_its_seeds():
    found = report(trials(lambda size: 2.0 * size**-0.25, seeds=2))
    assert [point.width for point in found.points] == WIDTHS
    assert [point.loss for point in found.points] == pytest.approx(
        [2.0 * parameters(width) ** -0.25 for width in WIDTHS]
    )
    assert found.points[0].flops == 6 * parameters(32) * 10_000


def test_losses_that_do_not_fall_with_size_have_no_law():
    found = report(trials(lambda size: 0.5))
    assert "does not fall with parameters" in found.text()


def test_a_law_whose_interval_says_nothing_is_no_headline(tmp_path):
    draw = np.random.default_rng(1)
    rows = trials(lambda size: 0.1 * math.exp(draw.normal(0, 0.3)), WIDTHS[:4])
    found = write_report(RunFolder(str(tmp_path)), rows, "sweep", "val/loss", "min", 1.0)
    assert not any(law.is_known for law in found.scaling.laws)
    assert not any(label.startswith("scaling") for label in found.lines)
    assert "these widths do not tell" in found.scaling.text()


def test_fewer_than_four_widths_give_no_law_but_the_reason():
    found = report(trials(lambda size: size**-0.25, WIDTHS[:3]))
    assert found.laws == ()
    assert found.text() == (
        "a power law needs at least 4 widths of different size, and 3 came to a loss: sweep more widths"
    )
    assert scaling_figure(found, "val/loss") is None


def test_widths_that_change_no_size_count_once():
    found = report(trials(lambda size: size**-0.25, parameters=1000))
    assert found is None


def test_there_is_no_report_of_one_width_an_accuracy_or_trials_of_unknown_size():
    rows = trials(lambda size: size**-0.25)
    assert report(rows[:3]) is None
    assert report(rows, "max") is None
    assert report(trials(lambda size: size**-0.25, flops=None)) is None


def test_the_band_is_narrow_among_the_widths_and_wider_beyond_them():
    draw = np.random.default_rng(0)
    law = report(trials(lambda size: 2.0 * size**-0.25 * math.exp(draw.normal(0, 0.01)))).laws[0].law
    inside, beyond = (math.log(high / low) for low, high in (law.band(parameters(128)), law.band(1e9)))
    assert 0 < 2 * inside < beyond


def test_the_picture_has_each_laws_fit_and_the_held_out_width_measured_and_predicted():
    found = report(trials(lambda size: 2.0 * size**-0.25 + 0.05))
    panels = scaling_figure(found, "val/loss").axes
    assert [axes.get_xlabel() for axes in panels] == ["parameters", "training FLOPs"]
    for axes, scaling in zip(panels, found.laws, strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        fit = lines["fit to all"]
        assert fit.get_ydata() == pytest.approx([scaling.law.at(size) for size in fit.get_xdata()])
        ((_, measured),) = lines["held out, measured"].get_xydata()
        ((_, predicted),) = lines["predicted"].get_xydata()
        assert (measured, predicted) == (scaling.measured, scaling.predicted)
        assert [text.get_text() for text in axes.texts] == [f"{point.width:g}" for point in found.points]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_picture_and_the_numbers_are_in_the_sweeps_report(tmp_path):
    rows, folder = trials(lambda size: 2.0 * size**-0.25 + 0.05), RunFolder(str(tmp_path))
    found = write_report(folder, rows, "sweep", "val/loss", "min", 1.0)
    assert found.lines["scaling N"] == found.scaling.laws[0].text()
    assert found.lines["scaling C"] == found.scaling.laws[1].text()
    assert "scaling N" in folder.read("report/report.html").decode()
    assert "scaling C" in found.note
    assert folder.exists("pictures/loss_by_size.png")
    (first, second) = found.scaling.as_dict()["laws"]
    assert (first["size"], second["size"]) == ("parameters", "training FLOPs")
    assert first["held_out_width"] == 1024
