"""How the best loss falls as a model grows: a power law through the widths of a sweep.

L(x) = a x^-b + c, with x the number of parameters N or the operations of the training C, and c >= 0 the loss that no
size removes (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", equations 1.1 and 1.3; Henighan et al.
2020, "Scaling Laws for Autoregressive Generative Modeling", equation 1.1, for c). It knows rows of trials, not how
models were parametrized. Without a tuned learning rate at each width, the law is one of learning rates.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.plots.figure import new_panels
from shoal.storage.records import TrialRow
from shoal.tune.trials import Mode, PointRow, is_number, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_WIDTHS = 4  # one is held out, and a law has three numbers
CONFIDENCE = 0.9
# Of the residuals of log loss: smaller ones count by their square, larger ones by their size. After Hoffmann et al.
# 2022, "Training Compute-Optimal Large Language Models", section 3.3; their 0.001 is for runs that scatter less than
# small ones.
HUBER_DELTA = 0.02
MAX_EXPONENT = 3.0  # a larger one is noise
MIN_EXPONENT = 1e-3  # with a smaller one the loss does not fall
STARTS = (0.0, 0.5, 0.9)  # of c, as shares of the lowest loss
ZERO_FLOOR = 1e-3  # a c below this share of the lowest loss is set to 0


@dataclass(frozen=True)
class SizePoint:
    """The best loss of one width, as the mean over seeds; `flops` are of that training."""

    width: float
    parameters: int
    flops: float
    loss: float


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = scale x^-exponent + floor.

    The interval comes from the covariance of the least-squares fit (its curvature, times the variance of the
    residuals) and Student's t: at a confidence of 0.9 it held the exponent in 82 to 95 of 100 simulated sweeps of 4
    to 8 widths. A floor that the fit puts at 0 counts as known.

    Attributes:
        interval: of the exponent; None without a degree of freedom.
        center: log of the size at which `covariance` holds.
        covariance: of (log scale at the center, exponent, floor).
        quantile: of Student's t.
    """

    scale: float
    exponent: float
    floor: float
    interval: tuple[float, float] | None
    center: float
    covariance: tuple[tuple[float, ...], ...] | None
    quantile: float

    def at(self, size: float) -> float:
        """Return the loss at a size."""
        return float(self.scale * size**-self.exponent + self.floor)

    def band(self, size: float) -> tuple[float, float]:
        """Return the lower and upper end of the loss at a size, at the confidence of the interval."""
        loss = self.at(size)
        if self.covariance is None:
            return loss, loss
        slopes = _slopes(np.log([size]) - self.center, self._centered)[0]
        spread = self.quantile * math.sqrt(max(0.0, float(slopes @ np.array(self.covariance) @ slopes)))
        return loss * math.exp(-min(spread, 50.0)), loss * math.exp(min(spread, 50.0))

    @property
    def _centered(self) -> np.ndarray:
        return np.array([math.log(self.scale) - self.exponent * self.center, self.exponent, self.floor])


@dataclass(frozen=True)
class ScalingLaw:
    """A law of one kind of size, and how well a fit without the largest width predicts that width.

    Attributes:
        symbol, size: N (parameters) or C (training FLOPs).
        width: the largest, which is held out.
        predicted, measured: loss at that width.
    """

    symbol: str
    size: str
    law: PowerLaw
    without_largest: PowerLaw
    width: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The error of the prediction, as a share of the measured loss."""
        return self.predicted / self.measured - 1.0

    @property
    def is_known(self) -> bool:
        """Whether the widths tell that the loss falls with size: 0 is not in the exponent's interval."""
        return self.law.interval is not None and self.law.interval[0] > 0

    def text(self) -> str:
        """Return the law and its prediction in one line, or that there is none."""
        law, percent = self.law, f"{CONFIDENCE:.0%}"
        if law.exponent < MIN_EXPONENT:
            return f"the loss does not fall with {self.size} over these widths: there is no law to fit"
        if not self.is_known:
            return f"these widths do not tell how the loss falls with {self.size}: sweep more of them, or more rates"
        known = f" ({law.interval[0]:.3g} to {law.interval[1]:.3g} at {percent})" if law.interval else ""
        return (
            f"loss = {law.scale:.3g} {self.symbol}^-{law.exponent:.3g}{known} + {law.floor:.3g}, "
            f"{self.symbol} {self.size}; held out width {self.width:g}: predicted {self.predicted:.4g}, "
            f"measured {self.measured:.4g} ({self.error:+.1%})"
        )


@dataclass(frozen=True)
class ScalingReport:
    """The best loss of each width, by parameters, and its laws; none with fewer than `MIN_WIDTHS` different sizes."""

    points: tuple[SizePoint, ...]
    laws: tuple[ScalingLaw, ...]

    def text(self) -> str:
        """Return a line per law, or one that says why there is none."""
        if self.laws:
            return "\n".join(law.text() for law in self.laws)
        return (
            f"a power law needs at least {MIN_WIDTHS} widths of different size, and {len(self.points)} came to a "
            "loss: sweep more widths"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, for `result.json`."""
        return {
            "points": [asdict(point) for point in self.points],
            "laws": [
                {
                    "size": law.size,
                    "scale": law.law.scale,
                    "exponent": law.law.exponent,
                    "floor": law.law.floor,
                    "interval": list(law.law.interval) if law.law.interval else None,
                    "confidence": CONFIDENCE,
                    "held_out_width": law.width,
                    "predicted": law.predicted,
                    "measured": law.measured,
                    "error": law.error,
                }
                for law in self.laws
            ],
        }


def scaling_report(rows: Sequence[TrialRow], width_key: str, mode: Mode) -> ScalingReport | None:
    """Return how the best loss falls with size; None with fewer than two widths, or if the metric is no loss."""
    found = _size_points(rows, width_key, mode)
    if len(found) < 2 or mode == "max" or any(point.loss <= 0 for point in found):
        return None
    if len(found) < MIN_WIDTHS:
        return ScalingReport(found, ())
    by_parameters = _scaling_law("N", "parameters", found, lambda point: float(point.parameters))
    by_flops = _scaling_law("C", "training FLOPs", found, lambda point: point.flops)
    return ScalingReport(found, (by_parameters, by_flops))


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """Fit a law to the logarithm of losses, with the Huber loss, from several starting points.

    Args:
        sizes: at least two different ones.
        losses: positive.
    """
    from scipy.stats import t

    logs, targets = np.log(sizes), np.log(losses)
    center = float(logs.mean())
    found = _parameters(
        min((_fit_from(share, logs - center, targets) for share in STARTS), key=_cost), min(losses)
    )
    free = len(logs) - (3 if found[2] > 0 else 2)
    covariance = _covariance(found, logs - center, targets, free) if free > 0 else None
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, free)) if free > 0 else math.inf
    spread = quantile * math.sqrt(covariance[1][1]) if covariance else math.inf
    exponent = float(found[1])
    return PowerLaw(
        scale=math.exp(found[0] + exponent * center),
        exponent=exponent,
        floor=float(found[2]),
        interval=(exponent - spread, exponent + spread) if covariance else None,
        center=center,
        covariance=covariance,
        quantile=quantile,
    )


def scaling_figure(report: ScalingReport, metric: str) -> "Figure | None":
    """Draw loss against size, each law with its interval, and the measured and predicted loss of the held-out width."""
    if not report.laws:
        return None
    figure, panels = new_panels(f"Best {metric} by size", 1, len(report.laws))
    figure.set_size_inches(11, 4.8)
    for scaling, axes in zip(report.laws, panels[0], strict=True):
        _draw(scaling, [_size_of(scaling.symbol, point) for point in report.points], report.points, axes)
        axes.set_ylabel(metric)
    return figure


def _size_points(rows: Sequence[TrialRow], width_key: str, mode: Mode) -> tuple[SizePoint, ...]:
    """Return the best point of each width, by number of parameters; of widths of the same size the best."""
    by_number = {row.number: row for row in rows}
    found: dict[int, SizePoint] = {}
    widths = set()
    for point in points(rows, mode):
        width: Any = point.params.get(width_key)
        trials = [by_number[number] for number in point.numbers]
        if not is_number(width) or width in widths or not all(row.parameters and row.flops for row in trials):
            continue
        widths.add(width)
        found.setdefault(trials[0].parameters or 0, _size_point(float(width), point, trials))
    return tuple(found[size] for size in sorted(found))


def _size_point(width: float, point: PointRow, trials: Sequence[TrialRow]) -> SizePoint:
    flops = statistics.fmean(float(row.flops or 0) for row in trials)
    return SizePoint(width, trials[0].parameters or 0, flops, point.mean)


def _scaling_law(
    symbol: str, size: str, found: Sequence[SizePoint], size_of: Callable[[SizePoint], float]
) -> ScalingLaw:
    sizes, losses = [size_of(point) for point in found], [point.loss for point in found]
    largest = found[-1]
    without = fit_power_law(sizes[:-1], losses[:-1])
    predicted = without.at(sizes[-1])
    return ScalingLaw(
        symbol, size, fit_power_law(sizes, losses), without, largest.width, predicted, largest.loss
    )


def _size_of(symbol: str, point: SizePoint) -> float:
    return float(point.parameters) if symbol == "N" else point.flops


def _predicted(found: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Return the log loss at sizes, given by their logarithm."""
    losses: np.ndarray = np.log(np.exp(found[0] - found[1] * logs) + found[2])
    return losses


def _slopes(logs: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the derivatives [n, 3] of the log loss by log scale, exponent and floor."""
    power = np.exp(found[0] - found[1] * logs)
    slopes = np.stack([power, -logs * power, np.ones_like(power)], axis=1)
    relative: np.ndarray = slopes / (power + found[2])[:, None]
    return relative


def _fit_from(share: float, logs: np.ndarray, targets: np.ndarray) -> Any:
    """Fit, starting with a floor that is a share of the lowest loss."""
    from scipy.optimize import least_squares

    lowest = float(np.exp(targets.min()))
    slope, constant = np.polyfit(logs, np.log(np.exp(targets) - share * lowest), 1)
    start = [constant, np.clip(-slope, 0.01, 0.99 * MAX_EXPONENT), (share + 1e-9) * lowest]
    return least_squares(
        lambda found: _predicted(found, logs) - targets,
        start,
        bounds=([-np.inf, 0.0, 0.0], [np.inf, MAX_EXPONENT, lowest]),
        x_scale=[1.0, 0.1, lowest],
        loss="huber",
        f_scale=HUBER_DELTA,
    )


def _cost(fitted: Any) -> float:
    return float(fitted.cost)


def _parameters(fitted: Any, lowest: float) -> np.ndarray:
    found = np.array(fitted.x)
    if found[2] < ZERO_FLOOR * lowest:
        found[2] = 0.0
    return found


def _covariance(
    found: np.ndarray, logs: np.ndarray, targets: np.ndarray, free: int
) -> tuple[tuple[float, ...], ...]:
    fitted = [0, 1, 2] if found[2] > 0 else [0, 1]
    residuals = _predicted(found, logs) - targets
    slopes = _slopes(logs, found)[:, fitted]
    full = np.zeros((3, 3))
    full[np.ix_(fitted, fitted)] = np.linalg.pinv(slopes.T @ slopes) * float(residuals @ residuals) / free
    return tuple(tuple(float(value) for value in row) for row in full)


def _draw(scaling: ScalingLaw, sizes: Sequence[float], found: Sequence[SizePoint], axes: Any) -> None:
    losses, law = [point.loss for point in found], scaling.law
    grid = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 100)
    low, high = zip(*map(law.band, grid), strict=True)
    inside = max(losses) * 1.5, min(losses) / 1.5  # with one degree of freedom the band is wide
    axes.fill_between(
        grid, np.maximum(low, inside[1]), np.minimum(high, inside[0]), alpha=0.15, label=f"{CONFIDENCE:.0%}"
    )
    axes.plot(grid, [law.at(size) for size in grid], color="tab:blue", label="fit to all")
    predicted = [scaling.without_largest.at(size) for size in grid]
    axes.plot(grid, predicted, "--", color="tab:orange", label=f"fit without width {scaling.width:g}")
    axes.plot(sizes[:-1], losses[:-1], "o", color="black", markersize=5, zorder=3)
    marks = {"markersize": 8, "zorder": 4, "linestyle": "none"}
    axes.plot(sizes[-1:], losses[-1:], marker="s", color="tab:red", **marks, label="held out, measured")
    axes.plot(sizes[-1:], [scaling.predicted], marker="x", color="tab:orange", **marks, label="predicted")
    for point, size in zip(found, sizes, strict=True):
        axes.annotate(f"{point.width:g}", (size, point.loss), (4, 5), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel=scaling.size)
    _label_losses(axes)
    axes.set_title(f"exponent {law.exponent:.3g}, held out {scaling.error:+.1%}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _label_losses(axes: Any) -> None:
    """Write plain numbers along an axis that may span less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
