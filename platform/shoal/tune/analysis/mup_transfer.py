"""What tuning at a narrow width saves over tuning at the target width, as numbers and as a picture.

The method is muTransfer (Yang et al. 2022, "Tensor Programs V"). It knows trials and costs, not how they were trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.plots.figure import new_panels
from shoal.storage.records import TrialRow
from shoal.tune.trials import Mode, PointRow, cells, is_number, limits, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cost:
    """FLOPs of training, and its seconds without setup.

    Seconds are summed over processes. Trials that share a machine take longer than a run that has it to itself; FLOPs
    are the same anywhere.
    """

    flops: float
    seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.seconds + other.seconds)


@dataclass(frozen=True)
class Savings:
    """The cost of searching at the base width and training once at the target width, and of searching at the latter.

    Attributes:
        search: of all trials at the base width.
        training: of the one run at the target width.
        direct: of the same trials at the target width; the best of them is the trained model.
        is_measured: whether `direct` was run; else it is predicted.
    """

    search: Cost
    training: Cost
    direct: Cost
    is_measured: bool = False

    @property
    def whole(self) -> Cost:
        return self.search + self.training

    @property
    def flops_factor(self) -> float:
        """How many times the FLOPs the direct search takes."""
        return self.direct.flops / self.whole.flops

    @property
    def seconds_factor(self) -> float:
        """How many times the seconds the direct search takes."""
        return self.direct.seconds / self.whole.seconds

    def by_name(self) -> dict[str, Cost]:
        """Return the costs by the names they have in `result.json`."""
        return {
            "search": self.search,
            "training": self.training,
            "whole": self.whole,
            "direct_search": self.direct,
        }


def busy_seconds(seconds: float, shares: Mapping[str, float]) -> float:
    """Return the seconds spent on training: without setup, and without waiting for a scheduler's decisions.

    Args:
        seconds, shares: of an `Outcome` or a `TrainResult`; what was waited for is in no share.
    """
    return seconds * sum(shares.values())


def cost_of(rows: Sequence[TrialRow]) -> Cost:
    """Return what trials took; those that were stopped early as far as they went."""
    return Cost(sum(row.flops or 0 for row in rows), sum(row.training_s or 0.0 for row in rows))


def predict_savings(search: Cost, growth: float, training: Cost) -> Savings:
    """Predict the search at the target width: the same trials, stopped at the same steps, with a larger model.

    Args:
        growth: the FLOPs of a sample at the target width, over those at the base width.
        training: of the run at the target width; the search there is taken to need the same seconds per FLOP.
    """
    flops = search.flops * growth
    return Savings(search, training, Cost(flops, flops * training.seconds / training.flops))


def gap(transferred: float, best: float, mode: Mode) -> float:
    """Return by how much the transferred run is worse than the best found at the target width."""
    return transferred - best if mode == "min" else best - transferred


def compare_point(
    rows: Sequence[TrialRow], params: Mapping[str, Any], value: float, mode: Mode
) -> tuple[float, PointRow]:
    """Return the value of a point among the trials of a sweep, and the best point there; means over several seeds.

    Args:
        value: of a run at that point, which counts if the sweep has not tried it.
    """
    ranked = points(rows, mode)
    return next((point.mean for point in ranked if point.params == params), value), ranked[0]


def transfer_figure(
    trials: Mapping[float, Sequence[TrialRow]],
    key: str,
    transferred: tuple[float, float, float],
    savings: Savings,
    metric: str,
    mode: Mode,
) -> "Figure":
    """Draw the metric against a swept key at each width, the transferred run as a star, and FLOPs as bars.

    Args:
        trials: of the base width, and of the target width where it was swept too.
        key: of a number that was swept, usually optim.lr.
        transferred: width, value of the key and metric of the run at the target width.
    """
    title = f"Tuned at width {min(trials):g}, trained at width {transferred[0]:g}"
    figure, ((curves, bars),) = new_panels(title, 1, 2, shared="none")
    figure.set_size_inches(11, 4.8)
    _draw_curves(curves, trials, key, transferred, metric, mode)
    _draw_bars(bars, savings)
    return figure


def _draw_curves(
    axes: Any,
    trials: Mapping[float, Sequence[TrialRow]],
    key: str,
    transferred: tuple[float, float, float],
    metric: str,
    mode: Mode,
) -> None:
    curves = {width: _curve(rows, key, mode) for width, rows in trials.items()}
    values = [value for curve in curves.values() for _, value in curve] + [transferred[2]]
    low, high = limits(values, mode)
    for width, curve in curves.items():
        inside = [(at, min(max(value, low), high)) for at, value in curve]
        axes.plot(*zip(*inside, strict=True), "o-", markersize=4, label=f"width {width:g}")
    width, at, value = transferred
    label = f"width {width:g}, transferred"
    axes.plot(at, value, "*", color="tab:red", markersize=15, markeredgecolor="black", zorder=4, label=label)
    axes.set(xscale="log", xlabel=key, ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _curve(rows: Sequence[TrialRow], key: str, mode: Mode) -> list[tuple[float, float]]:
    found = cells(rows, (key,), mode).items()
    return sorted((value, metric) for (value,), metric in found if is_number(value) and value > 0)


def _draw_bars(axes: Any, savings: Savings) -> None:
    search, training, direct = savings.search.flops, savings.training.flops, savings.direct.flops
    how = "measured" if savings.is_measured else "predicted"
    axes.bar("tune narrow,\ntrain wide", search, color="tab:blue", label="search")
    axes.bar("tune narrow,\ntrain wide", training, bottom=search, color="tab:orange", label="training")
    axes.bar(f"tune wide\n({how})", direct, color="tab:gray", label="search at the target width")
    axes.set_ylabel("FLOPs of training")
    axes.set_title(f"tuning wide takes {savings.flops_factor:.2g} times the FLOPs", fontsize=10)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
